"""For the API reference: a field without a docstring is documented by the comment behind it."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension

COMMENT = re.compile(r"\s#\s+(?!noqa|type:)(.*)$")


class FieldComments(Extension):
    """Reads `name: type = default  # what it is`."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Turn the comment at the end of a field's last line into its docstring."""
        if attr.docstring is None and attr.endlineno is not None:
            found = COMMENT.search(attr.lines_collection[attr.filepath][attr.endlineno - 1])
            if found:
                attr.docstring = Docstring(found[1], parent=attr)
