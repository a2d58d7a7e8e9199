"""The tasks of Hindsight's own small AppWorld: nine kinds of errand for people drawn by a seed.

    imagine(seed) ──► Home ──generator──► Draft: what is asked, a solution in turns, tests, the right answer

They are ours and none of the benchmark's. `envs.appworld.mini` writes them down. The texts of the solutions
run in AppWorld's shell, those of the tests in its evaluator, as upstream's own do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


SPLITS = {"train": 6, "test_normal": 3}  # tasks of each generator; the names are upstream's
TURN = "# next turn"  # between the pieces of a solution, which are the turns of a demonstration
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FIRST = _words("Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jon Kira Leo Mona Nils Olga Paul")
LAST = _words("Archer Brandt Castle Dorn Ellis Fuchs Grant Holm Innes Jensen")
LISTS = {
    "Shopping List": _words("rice eggs oil tomatoes coffee salt apples bread tea onions butter lentils"),
    "Packing List": _words("socks charger passport towel jacket soap map sunglasses book umbrella"),
    "Tool List": _words("hammer saw pliers tape drill level chisel sandpaper clamps screws"),
}
PROJECTS = {
    "Garden": ["cut the hedge", "water the beans", "sow radishes", "mend the fence", "turn the compost"],
    "House Move": ["order boxes", "cancel the lease", "label the keys", "sell the sofa", "rent a van"],
    "Tax Return": ["find receipts", "fill in the form", "call the adviser", "check the figures"],
}
ALARMS = ["Wake up", "Gym", "Medicine", "Bins out", "Call home", "Yoga", "Stand-up"]
RELATIONSHIPS = ("friend", "coworker", "neighbor")


@dataclass
class Home:
    """One person's data as they were put into the apps."""

    rng: random.Random
    person: dict[str, str]
    notes: dict[str, list[str]]  # title: items
    projects: dict[str, list[dict[str, Any]]]  # name: tasks
    alarms: list[dict[str, Any]]
    contacts: list[dict[str, Any]]


@dataclass
class Draft:
    """What a generator makes of a home."""

    difficulty: int
    instruction: str
    turns: list[str]  # of the solution
    answer: str | int | None = None
    changed: tuple[str, ...] = ()  # the only models that may differ in the end
    checks: dict[str, str] = field(default_factory=dict)  # requirement: statements of its test
    private: dict[str, Any] = field(default_factory=dict)


def bullet_list(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def birth(person: dict[str, Any]) -> str:
    return person["birthday"]


def imagine(seed: str) -> Home:
    """A person with lists, projects, alarms and contacts, drawn by the seed."""
    rng = random.Random(seed)

    def person(first: str) -> dict[str, str]:
        last = rng.choice(LAST)
        return {
            "first_name": first,
            "last_name": last,
            "email": f"{first}.{last}@example.com".lower(),
            "phone_number": f"555{rng.randrange(10**7):07d}",
            "birthday": f"{rng.randint(1950, 2000)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        }

    owner, *others = (person(first) for first in rng.sample(FIRST, 9))
    related = [*RELATIONSHIPS, *rng.choices(RELATIONSHIPS, k=5)]
    return Home(
        rng,
        owner,
        notes={title: rng.sample(things, rng.randint(3, len(things) - 2)) for title, things in LISTS.items()},
        projects={
            name: [
                {
                    "title": title,
                    "priority": rng.choice(["high", "medium", "low"]),
                    "is_completed": number > 0 and rng.random() < 0.3,
                }
                for number, title in enumerate(rng.sample(titles, len(titles)))
            ]
            for name, titles in PROJECTS.items()
        },
        alarms=[
            {
                "label": label,
                "time": f"{rng.randrange(24):02d}:{rng.randrange(0, 60, 5):02d}",
                "repeat_days": sorted(rng.sample(DAYS, rng.randint(1, 4)), key=DAYS.index),
                "enabled": number == 0 or rng.random() < 0.7,
            }
            for number, label in enumerate(rng.sample(ALARMS, len(ALARMS)))
        ],
        contacts=[
            {**row, "relationships": [kind]} for row, kind in zip(others, rng.sample(related, 8), strict=True)
        ],
    )


def login(app: str, variable: str = "token") -> str:
    by = "phone_number" if app == "phone" else "email"
    return dedent(f"""\
        accounts = apis.supervisor.show_account_passwords()
        passwords = {{row["account_name"]: row["password"] for row in accounts}}
        username = apis.supervisor.show_profile()["{by}"]
        {variable} = apis.{app}.login(username=username, password=passwords["{app}"])["access_token"]""")


def look_up(app: str, *names: str) -> str:
    return "\n".join(
        f'print(apis.api_docs.show_api_doc(app_name="{app}", api_name="{name}"))' for name in names
    )


def read_note(title: str) -> str:
    return login("simple_note") + dedent(f"""
        found = apis.simple_note.search_notes(access_token=token, query={title!r})
        note_id = next(note["note_id"] for note in found if note["title"] == {title!r})
        note = apis.simple_note.show_note(access_token=token, note_id=note_id)
        print(note["content"])""")


def read_project(name: str, token: str = "token") -> str:
    return login("todoist", token) + dedent(f"""
        projects = apis.todoist.show_projects(access_token={token}, query={name!r})
        project_id = next(row["project_id"] for row in projects if row["name"] == {name!r})
        tasks = apis.todoist.show_tasks(access_token={token}, project_id=project_id)["no_section_tasks"]
        print([[task["title"], task["priority"], task["is_completed"]] for task in tasks])""")


READ_ALARMS = login("phone") + dedent("""
    alarms = apis.phone.show_alarms(access_token=token, page_limit=20)
    print([[alarm["label"], alarm["time"], alarm["repeat_days"], alarm["enabled"]] for alarm in alarms])""")
DONE = "apis.supervisor.complete_task()"


def read_contacts(relationship: str) -> str:
    return login("phone") + dedent(f"""
        contacts = apis.phone.search_contacts(
            access_token=token, relationship="{relationship}", page_limit=20
        )
        for row in contacts:
            print(row["first_name"], row["last_name"], row["birthday"], row["phone_number"])""")


def note_count(home: Home) -> Draft:
    title = home.rng.choice(list(home.notes))
    count = "apis.supervisor.complete_task(answer=len(note['content'].splitlines()))"
    turns = [look_up("simple_note", "search_notes", "show_note"), read_note(title), count]
    return Draft(1, f"How many things are on my note '{title}'?", turns, answer=len(home.notes[title]))


def alarm_time(home: Home) -> Draft:
    alarm = home.rng.choice(home.alarms)
    act = dedent(f"""\
        time = next(alarm["time"] for alarm in alarms if alarm["label"] == {alarm["label"]!r})
        apis.supervisor.complete_task(answer=time)""")
    question = f"At what time does my alarm '{alarm['label']}' ring? Answer in the form HH:MM."
    return Draft(1, question, [look_up("phone", "show_alarms"), READ_ALARMS, act], answer=alarm["time"])


def note_append(home: Home) -> Draft:
    title = home.rng.choice(list(home.notes))
    thing = home.rng.choice([item for item in LISTS[title] if item not in home.notes[title]])
    act = dedent(f"""\
        apis.simple_note.add_content_to_note(
            access_token=token, note_id=note_id, append_or_prepend="append", added_content="- {thing}"
        )
        """)
    wanted = dict(home.notes, **{title: [*home.notes[title], thing]})
    return Draft(
        1,
        f"Put '{thing}' at the end of my note '{title}', on a line of its own, written like the others.",
        [look_up("simple_note", "add_content_to_note"), read_note(title), act + DONE],
        changed=("simple_note.Note",),
        checks={
            "the note has the new line at its end and the other notes are as they were": """\
            notes = models.end.simple_note.Note.find_all()
            test.case({note.title: note.content for note in notes}, "==", dict(private_data["notes"]))"""
        },
        private={"notes": {name: bullet_list(items) for name, items in wanted.items()}},
    )


def alarms_off(home: Home) -> Draft:
    day = home.rng.choice([day for alarm in home.alarms if alarm["enabled"] for day in alarm["repeat_days"]])
    act = dedent(f"""\
        for alarm in alarms:
            if alarm["enabled"] and "{day}" in alarm["repeat_days"]:
                apis.phone.update_alarm(access_token=token, alarm_id=alarm["alarm_id"], enabled=False)
        """)
    enabled = [
        [alarm["label"], alarm["enabled"] and day not in alarm["repeat_days"]] for alarm in home.alarms
    ]
    return Draft(
        2,
        f"Switch off every alarm of mine that rings on a {day.capitalize()}. Leave the others as they are.",
        [look_up("phone", "show_alarms", "update_alarm"), READ_ALARMS, act + DONE],
        changed=("phone.Alarm",),
        checks={
            f"the alarms that ring on a {day} are off and the others as they were": """\
            alarms = [[alarm.label, alarm.enabled] for alarm in models.end.phone.Alarm.find_all()]
            test.case(sorted(alarms), "==", sorted(list(pair) for pair in private_data["enabled"]))"""
        },
        private={"enabled": enabled},
    )


def todo_complete(home: Home) -> Draft:
    name = home.rng.choice(list(home.projects))
    priority = home.rng.choice([task["priority"] for task in home.projects[name] if not task["is_completed"]])
    act = dedent(f"""\
        for task in tasks:
            if task["priority"] == "{priority}" and not task["is_completed"]:
                apis.todoist.update_task(access_token=token, task_id=task["task_id"], is_completed=True)
        """)
    done = [
        [task["title"], task["is_completed"] or (project == name and task["priority"] == priority)]
        for project, tasks in home.projects.items()
        for task in tasks
    ]
    return Draft(
        2,
        f"In Todoist, mark all tasks of {priority} priority in my project '{name}' as completed.",
        [look_up("todoist", "show_tasks", "update_task"), read_project(name), act + DONE],
        changed=("todoist.Task",),
        checks={
            "exactly the tasks that were asked for have been completed": """\
            tasks = [[task.title, task.is_completed] for task in models.end.todoist.Task.find_all()]
            test.case(sorted(tasks), "==", sorted(list(pair) for pair in private_data["done"]))"""
        },
        private={"done": done},
    )


def todo_count(home: Home) -> Draft:
    name = home.rng.choice(list(home.projects))
    left = sum(not task["is_completed"] for task in home.projects[name])
    act = "apis.supervisor.complete_task(answer=sum(not task['is_completed'] for task in tasks))"
    turns = [look_up("todoist", "show_projects", "show_tasks"), read_project(name), act]
    return Draft(2, f"How many tasks of my Todoist project '{name}' are still open?", turns, answer=left)


def note_to_todo(home: Home) -> Draft:
    title, name = home.rng.choice(list(home.notes)), home.rng.choice(list(home.projects))
    act = dedent("""\
        for line in note["content"].splitlines():
            apis.todoist.create_task(access_token=todo, project_id=project_id, title=line.removeprefix("- "))
        """)
    return Draft(
        3,
        f"Add everything on my note '{title}' to my Todoist project '{name}': one task per thing, titled "
        "like the thing, behind the tasks that are there and in the note's order.",
        [look_up("todoist", "create_task"), read_note(title), read_project(name, "todo"), act + DONE],
        changed=("todoist.Task",),
        checks={
            "the project has the note's things as tasks, in order, behind its old ones": """\
            project = models.end.todoist.Project.find_one(name=private_data["project"])
            tasks = models.end.todoist.Task.find_all(project_id=project.id)
            titles = [task.title for task in sorted(tasks, key=lambda task: task.order_index)]
            test.case(titles, "==", list(private_data["titles"]))"""
        },
        private={
            "project": name,
            "titles": [*(task["title"] for task in home.projects[name]), *home.notes[title]],
        },
    )


def birthday_note(home: Home) -> Draft:
    relationship = home.rng.choice(RELATIONSHIPS)
    title = f"{relationship.capitalize()} Birthdays"
    rows = sorted((row for row in home.contacts if row["relationships"] == [relationship]), key=birth)
    act = login("simple_note") + dedent(f"""
        rows = sorted(contacts, key=lambda row: row["birthday"])
        text = [row["first_name"] + " " + row["last_name"] + ": " + row["birthday"][:10] for row in rows]
        apis.simple_note.create_note(access_token=token, title="{title}", content="\\n".join(text))
        """)
    return Draft(
        3,
        f"Write a note '{title}' with a line 'First Last: YYYY-MM-DD' for each {relationship} among my "
        "phone's contacts, the oldest person first.",
        [look_up("phone", "search_contacts"), read_contacts(relationship), act + DONE],
        changed=("simple_note.Note",),
        checks={
            "there is one new note, with the right title and lines": """\
            added, updated, removed = models.changed_records("simple_note.Note")
            test.case([len(added), len(updated), len(removed)], "==", [1, 0, 0])
            test.case(added[0].title, "==", private_data["title"])
            test.case(added[0].content.strip(), "==", private_data["content"])"""
        },
        private={
            "title": title,
            "content": "\n".join(f"{row['first_name']} {row['last_name']}: {birth(row)}" for row in rows),
        },
    )


def text_all(home: Home) -> Draft:
    relationship = home.rng.choice(RELATIONSHIPS)
    message = home.rng.choice(["Dinner at eight?", "I am running late.", "See you on Sunday!", "Thank you!"])
    act = dedent(f"""\
        for row in contacts:
            apis.phone.send_text_message(
                access_token=token, phone_number=row["phone_number"], message={message!r}
            )
        """)
    numbers = [row["phone_number"] for row in home.contacts if row["relationships"] == [relationship]]
    return Draft(
        3,
        f"Send the text message '{message}' to each {relationship} among my phone's contacts.",
        [look_up("phone", "search_contacts", "send_text_message"), read_contacts(relationship), act + DONE],
        changed=("phone.GlobalTextMessage", "phone.UserTextMessage"),
        checks={
            f"each {relationship} got the message once, and nobody else": """\
            added, updated, removed = models.changed_records("phone.GlobalTextMessage")
            sent = [[models.end.phone.User.by_id(row.receiver_id).phone_number, row.message] for row in added]
            test.case(sorted(sent), "==", sorted(list(pair) for pair in private_data["sent"]))
            test.case([len(updated), len(removed)], "==", [0, 0])"""
        },
        private={"sent": [[number, message] for number in numbers]},
    )


GENERATORS: dict[str, Callable[[Home], Draft]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        note_count, alarm_time, note_append, alarms_off, todo_complete,
        todo_count, note_to_todo, birthday_note, text_all,
    )
}  # fmt: skip


def tasks() -> Iterator[tuple[str, str, Home, Draft]]:
    """(split, id, home, draft) of every task."""
    for name, generate in GENERATORS.items():
        splits = [split for split, count in SPLITS.items() for _ in range(count)]
        for number, split in enumerate(splits, start=1):
            home = imagine(f"{name} {number}")
            yield split, f"mini-{name}_{number}", home, generate(home)
