"""Examples of what users add to Hindsight; `hindsight new` copies them."""
