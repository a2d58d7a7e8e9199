"""Writes Hindsight's own small AppWorld down, in the official layout, with the package's own classes.

    envs.appworld_tasks ──► OUT/data/{api_docs, base_dbs, tasks, datasets}

Upstream's own AppWorld and evaluator read it like the official data. It runs in AppWorld's interpreter.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from appworld import update_root
from appworld.apps import get_all_apps
from appworld.apps.api_lib import set_local_date_and_time, unset_local_date_and_time
from appworld.collections.api_docs import ApiDocCollection
from appworld.collections.models import ModelCollection
from appworld.common.constants import CANARY_STRING, DB_VERSION, DEFAULT_SYSTEM_DATETIME

from hindsight.envs.appworld.tasks import SPLITS, TURN, Draft, Home, bullet_list, tasks

APPS = ("simple_note", "todoist", "phone")  # where people have accounts
PASSWORD = "mini-{app}-{number}"


def write_home(models: ModelCollection, home: Home, instruction: str) -> None:
    """Write the home into the apps' databases."""

    def add(model: Any, rows: list[dict[str, Any]], **same: Any) -> list[int]:
        records = [model(**row, **same) for row in rows]
        model.save_all(records)
        return [record.id for record in records]

    owner = home.person
    passwords = {app: PASSWORD.format(app=app, number=home.rng.randrange(1000)) for app in APPS}
    add(models.admin.MainUser, [owner])
    (supervisor,) = add(models.supervisor.Supervisor, [owner])
    add(models.supervisor.Task, [{"instruction": instruction}], supervisor_id=supervisor)
    accounts = [{"account_name": app, "password": password} for app, password in passwords.items()]
    add(models.supervisor.AccountPassword, accounts, supervisor_id=supervisor)
    account = {key: owner[key] for key in ("first_name", "last_name", "email")}

    (user,) = add(models.simple_note.User, [account], password=passwords["simple_note"], verified=True)
    notes = [{"title": title, "content": bullet_list(items)} for title, items in home.notes.items()]
    add(models.simple_note.Note, notes, user_id=user)

    (user,) = add(models.todoist.User, [account], password=passwords["todoist"], verified=True)
    projects = add(models.todoist.Project, [{"name": name} for name in home.projects], user_id=user)
    add(models.todoist.ProjectCollaboratorLink, [{"project_id": one} for one in projects], user_id=user)
    tasks = [
        {**task, "project_id": project, "order_index": index}
        for project, tasks in zip(projects, home.projects.values(), strict=True)
        for index, task in enumerate(tasks)
    ]
    add(models.todoist.Task, tasks, user_id=user)

    names = ("first_name", "last_name", "phone_number")
    people = [{key: person[key] for key in names} for person in (owner, *home.contacts)]
    secrets = [passwords["phone"], *("somebody else's" for _ in home.contacts)]
    users = [{**person, "password": secret} for person, secret in zip(people, secrets, strict=True)]
    user = add(models.phone.User, users)[0]
    add(models.phone.Alarm, home.alarms, user_id=user)
    add(models.phone.Contact, home.contacts, user_id=user)


def evaluation(draft: Draft) -> tuple[str, list[dict[str, str]]]:
    """The source of the task's tests, and for each whether it fails where nothing is done."""
    answered = f"the task was completed with {'no' if draft.answer is None else 'the right'} answer"
    kept = (
        f"nothing has changed but {' and '.join(draft.changed)}" if draft.changed else "nothing has changed"
    )
    tests = {
        answered: "test.answer(models.end.supervisor.Task.find_one().answer, ground_truth_answer)",
        **draft.checks,
        kept: f"test.case(models.changed_model_names() - {set(draft.changed) or 'set()'}, '==', set())",
    }
    source = "def evaluate(test, public_data, private_data, main_user, models, ground_truth_answer):\n"
    for requirement, body in tests.items():
        source += indent(f"with test({requirement!r}):\n" + indent(dedent(body), "    "), "    ") + "\n"
    labels = {name: "no_op_pass" if name == kept else "no_op_fail" for name in tests}
    return source, [{"requirement": name, "label": label} for name, label in labels.items()]


def write_task(folder: Path, home: Home, draft: Draft) -> None:
    """The files next to a task's databases."""
    person = {key: value for key, value in home.person.items() if key != "birthday"}
    now = DEFAULT_SYSTEM_DATETIME.isoformat()
    specs = {
        "instruction": draft.instruction,
        "supervisor": person,
        "datetime": now,
        "db_version": DB_VERSION,
    }
    folder.joinpath("specs.json").write_text(json.dumps(specs | {"canary_string": CANARY_STRING}))
    truth = folder / "ground_truth"
    truth.mkdir()
    solution = "def solution(apis, requester):\n" + indent(f"\n{TURN}\n".join(draft.turns), "    ") + "\n"
    source, tests = evaluation(draft)
    called = set(re.findall(r"apis\.(\w+\.\w+)", solution))
    apps = sorted({name.split(".")[0] for name in called} & set(APPS))
    files = {
        "public_data": {},
        "private_data": draft.private,
        "answer": draft.answer,
        "test_data": tests,
        "required_apps": apps,
        "metadata": {
            "mode": "full",
            "difficulty": draft.difficulty,
            "num_apps": len(apps),
            "num_apis": len(called),
            "num_api_calls": solution.count("apis."),
            "num_solution_code_lines": len(solution.splitlines()) - 1,
        },
    }
    for name, content in files.items():
        truth.joinpath(f"{name}.json").write_text(json.dumps(content))
    for name, code in (("evaluation", source), ("solution", solution), ("compiled_solution", solution)):
        truth.joinpath(f"{name}.py").write_text(f"# Canary String: {CANARY_STRING}\n{code}")


def write_docs(data: Path, base: ModelCollection) -> None:
    """The API documentation twice: as files, and as what `apis.api_docs` answers from."""
    folder = data / "api_docs" / "standard"
    folder.mkdir(parents=True)
    rows = []
    for app, docs in ApiDocCollection.build().items():
        for doc in docs.values():
            doc["canary_string"] = CANARY_STRING
        (folder / f"{app}.json").write_text(json.dumps(docs))
        for name, doc in json.loads(json.dumps(docs)).items():
            columns = {
                key: doc[key] for key in ("path", "method", "description", "parameters", "response_schemas")
            }
            rows.append(base.api_docs.ApiDoc(app_name_=app, api_name=name, **columns))
    base.api_docs.ApiDoc.save_all(rows)


def main(out: str) -> None:
    """Fill the empty folder `out`."""
    update_root(out)
    data, apps = Path(out) / "data", get_all_apps()
    frozen = set_local_date_and_time(DEFAULT_SYSTEM_DATETIME)
    memory = ":memory:base"
    base = ModelCollection.load(
        to_db_home_path=memory, from_db_home_path=memory, load_apps=apps, create_db=True
    )
    write_docs(data, base)
    base.save(str(data / "base_dbs"), app_names=apps)
    base.close()
    made = list(tasks())
    for _, task, home, draft in made:
        folder = data / "tasks" / task
        folder.mkdir(parents=True)
        models = ModelCollection.load(f":memory:{task}", str(data / "base_dbs"), load_apps=apps)
        write_home(models, home, draft.instruction)
        models.save(str(folder / "dbs"), format="changes", app_names=apps)
        models.close()
        write_task(folder, home, draft)
    unset_local_date_and_time(frozen)
    (data / "datasets").mkdir()
    for split in SPLITS:
        ids = [task for part, task, _, _ in made if part == split]
        (data / "datasets" / f"{split}.txt").write_text("\n".join(ids) + "\n")
