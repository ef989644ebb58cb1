"""A small support desk: customers, their orders, a help centre, and requests whose right answer depends on the state.

Two kinds of request. *Undo*: a customer no longer wants an item; a pending order is to be cancelled, a delivered one
returned with a label, and one on its way left alone (cancelling it is possible, and harm). *Ask*: how long a warranty,
refund or repair takes for the item of an order, which only the order and then the help centre can tell.

Every task has a desk of its own, drawn from its seed: the same order number is another order elsewhere, so an answer
taken from another environment, or from before a write, is wrong.

Covered: reads whose answer changes with earlier writes, writes that can be refused, a pure tool, a free-text argument,
desks never seen in training (names, items and wording are the same few). Not covered: clocks, randomness, several
requests in one conversation.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from cacherl.evaluate.milestones import FreeText
from cacherl.worlds.world import Milestone, Split, Task
from toolcache_client.messages import ToolResult

CODE_VERSION: Final = "1"
"""Part of every environment's fingerprint; raise it with every change of what a tool answers."""

ITEMS: Final = tuple("lamp chair mug rug sofa clock mirror vase kettle radio camera tent".split())
NAMES: Final = tuple(
    "maria peter anna lucas emma noah julia felix clara hugo nina oscar laura simon eva martin".split()
)
ORDER_IDS: Final = range(10, 40)
"""Few different names, items and numbers: a tiny model learns to copy what it has seen often. They mean something
else at every desk, so none of it can be learned by heart."""
TOPICS: Final = ("warranty", "refund", "repair")
STATUSES: Final = ("pending", "shipped", "delivered")
CUSTOMERS: Final = 3
ORDERS_PER_CUSTOMER: Final = 3
ASK_SHARE: Final = 0.25
"""Share of the requests that only ask; the others may have to write."""
FREE_TEXT: Final[FreeText] = frozenset({("search_help", "question")})

UNDO_PROMPTS: Final = (
    "I am {email} and I no longer want my {item}.",
    "Please undo my order of the {item}. My email is {email}.",
    "{email} here, get rid of my {item} order.",
    "I changed my mind about the {item}, {email}.",
    "My {item} is not needed any more. Account {email}.",
)
ASK_PROMPTS: Final = (
    "How long is the {topic} for order {order_id}?",
    "I have order {order_id}. Tell me the {topic} time.",
    "Order {order_id}: what about the {topic}?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order as it stands in the initial state."""

    id: str
    item: str
    status: str


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The initial state of one environment."""

    orders: Mapping[str, tuple[Order, ...]]
    """By the customer's e-mail address, in the sequence in which the desk lists them."""

    @cached_property
    def by_id(self) -> Mapping[str, Order]:
        return {order.id: order for orders in self.orders.values() for order in orders}

    @cached_property
    def environment(self) -> str:
        """Fingerprint of the code version and this initial state."""
        shown = [
            [email, *((order.id, order.item, order.status) for order in own)] for email, own in self.orders.items()
        ]
        return f"support_desk@{CODE_VERSION}/{hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]}"

    def label(self, order_id: str) -> str:
        """The return label of an order number, whether or not there is such an order."""
        return str(number(self.environment, "label", order_id))

    def days(self, item: str, topic: str) -> int:
        """What this desk's help centre says."""
        return number(self.environment, item, topic)


def make_desk(rng: random.Random) -> Desk:
    """Customers and orders drawn from the generator; order numbers and names are unique in the desk."""
    order_ids = iter(rng.sample(ORDER_IDS, CUSTOMERS * ORDERS_PER_CUSTOMER))
    return Desk(
        orders={
            f"{name}@mail.com": tuple(
                Order(id=str(next(order_ids)), item=item, status=rng.choice(STATUSES))
                for item in rng.sample(ITEMS, ORDERS_PER_CUSTOMER)
            )
            for name in rng.sample(NAMES, CUSTOMERS)
        }
    )


def number(*parts: str) -> int:
    """A number of two digits, a function of the parts and nothing else: labels, and days in help articles."""
    return ORDER_IDS[int(hashlib.sha256(" ".join(parts).encode()).hexdigest(), 16) % len(ORDER_IDS)]


def facts(answer: str) -> frozenset[str]:
    """What an answer claims: outcomes, labels and numbers of days, whatever words stand around them.

    >>> sorted(facts("Your order is returned. Label 27."))
    ['27', 'returned']
    """
    return frozenset(re.findall(r"\b(?:cancelled|returned|kept|sorry|\d+)\b", answer.lower()))


class SupportDesk:
    """The world: a toolset and as many seeded tasks as are asked for.

    >>> world = SupportDesk(seed=0)
    >>> task = world.tasks("train", 1)[0]
    >>> session = world.open(task)
    >>> all(not session.execute(step.tool, step.arguments).is_error for step in task.milestones)
    True
    >>> session.succeeded(task.expected_answer)
    True
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    @property
    def name(self) -> str:
        return "support_desk"

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        return TOOLS

    @property
    def system_prompt(self) -> str:
        return "You work at a support desk."

    def tasks(self, split: Split, count: int) -> list[Task]:
        return [self._task(split, index) for index in range(count)]

    def open(self, task: Task) -> "SupportSession":
        return SupportSession(desk=self._desk(task.id), task=task)

    def _rng(self, task_id: str) -> random.Random:
        return random.Random(f"{self._seed}/{task_id}")

    def _desk(self, task_id: str) -> Desk:
        return make_desk(self._rng(task_id))

    def _task(self, split: Split, index: int) -> Task:
        task_id = f"{split}/{index}"
        rng = self._rng(task_id)
        desk = make_desk(rng)
        email = rng.choice(list(desk.orders))
        order = rng.choice(desk.orders[email])
        if rng.random() < ASK_SHARE:
            return _ask_task(rng, task_id, desk, order)
        return _undo_task(rng, task_id, desk, email, order)


def _ask_task(rng: random.Random, task_id: str, desk: Desk, order: Order) -> Task:
    topic = rng.choice(TOPICS)
    return Task(
        id=task_id,
        environment=desk.environment,
        prompt=rng.choice(ASK_PROMPTS).format(topic=topic, order_id=order.id),
        milestones=(
            Milestone(tool="get_order", arguments={"order_id": order.id}),
            Milestone(tool="search_help", arguments={"item": order.item, "topic": topic, "question": ""}),
        ),
        expected_answer=f"It takes {desk.days(order.item, topic)} days.",
        details={"kind": "ask", "topic": topic, "order_id": order.id, "item": order.item},
    )


def _undo_task(rng: random.Random, task_id: str, desk: Desk, email: str, order: Order) -> Task:
    asked = Milestone(tool="find_order", arguments={"email": email, "item": order.item})
    looked = Milestone(tool="get_order", arguments={"order_id": order.id})
    return Task(
        id=task_id,
        environment=desk.environment,
        prompt=rng.choice(UNDO_PROMPTS).format(email=email, item=order.item),
        milestones=(asked, looked, *_right_writes(order)),
        expected_answer=right_answer(order.status, label=desk.label(order.id)),
        details={"kind": "undo", "email": email, "item": order.item, "order_id": order.id},
    )


def _right_writes(order: Order) -> tuple[Milestone, ...]:
    arguments = {"order_id": order.id}
    match order.status:
        case "pending":
            return (Milestone(tool="cancel_order", arguments=arguments),)
        case "delivered":
            return (
                Milestone(tool="return_order", arguments=arguments),
                Milestone(tool="make_label", arguments=arguments),
            )
        case _:
            return ()


def right_answer(status: str, *, label: str = "") -> str:
    """The sentence that closes an undo request whose order was found in `status`."""
    match status:
        case "pending":
            return "Your order is cancelled."
        case "delivered":
            return f"Your order is returned. Label {label}."
        case _:
            return "Your order is kept, it is on its way."


class SupportSession:
    """One task in progress: its desk seen through the writes of this session."""

    def __init__(self, *, desk: Desk, task: Task) -> None:
        self._desk = desk
        self._task = task
        self._changed: dict[str, str] = {}
        self._tools: Mapping[str, Callable[..., ToolResult]] = {
            "find_order": self._find_order,
            "get_order": self._get_order,
            "cancel_order": self._cancel_order,
            "return_order": self._return_order,
            "make_label": self._make_label,
            "search_help": self._search_help,
        }

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one tool; an unknown tool or arguments of another shape are errors, not exceptions."""
        if tool not in self._tools:
            return _error(f"no tool {tool}")
        wanted = PARAMETERS[tool]
        if set(arguments) != set(wanted) or not all(isinstance(value, str) for value in arguments.values()):
            return _error(f"{tool} takes {', '.join(wanted)}")
        return self._tools[tool](**arguments)

    def succeeded(self, answer: str) -> bool:
        """Whether exactly the right order changed, in the right way, and the answer states the truth and no more."""
        return self._changed == self._right_changes() and facts(answer) == facts(self._task.expected_answer)

    def _right_changes(self) -> dict[str, str]:
        final = {"cancel_order": "cancelled", "return_order": "returned"}
        steps = [step for step in self._task.milestones if step.tool in final]
        return {str(step.arguments["order_id"]): final[step.tool] for step in steps}

    def _find_order(self, email: str, item: str) -> ToolResult:
        orders = self._desk.orders.get(email)
        if orders is None:
            return _error("no such customer")
        found = next((order.id for order in orders if order.item == item), None)
        return _error("no such order") if found is None else ToolResult(content=f"order {found}")

    def _get_order(self, order_id: str) -> ToolResult:
        order = self._desk.by_id.get(order_id)
        if order is None:
            return _error("no such order")
        return ToolResult(content=f"{order.item}: {self._status(order)}")

    def _status(self, order: Order) -> str:
        return self._changed.get(order.id, order.status)

    def _cancel_order(self, order_id: str) -> ToolResult:
        return self._write(order_id, allowed=("pending", "shipped"), final="cancelled")

    def _return_order(self, order_id: str) -> ToolResult:
        return self._write(order_id, allowed=("delivered",), final="returned")

    def _write(self, order_id: str, *, allowed: tuple[str, ...], final: str) -> ToolResult:
        order = self._desk.by_id.get(order_id)
        if order is None:
            return _error("no such order")
        if self._status(order) not in allowed:
            # The status stays out of the message: a refused write must not replace looking.
            return _error("not allowed in this status")
        self._changed[order.id] = final
        return ToolResult(content=f"{final}.")

    def _make_label(self, order_id: str) -> ToolResult:
        return ToolResult(content=self._desk.label(order_id))

    def _search_help(self, item: str, topic: str, question: str) -> ToolResult:
        if item not in ITEMS or topic not in TOPICS:
            return _error("no such article")
        return ToolResult(content=f"{item} {topic}: {self._desk.days(item, topic)} days")


def _error(reason: str) -> ToolResult:
    return ToolResult(content=f"Error: {reason}", is_error=True)


def _tool(name: str, effect: str, description: str, **parameters: str) -> Mapping[str, Any]:
    properties: dict[str, Any] = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    for key, values in (("item", ITEMS), ("topic", TOPICS)):
        if key in properties:
            properties[key]["enum"] = list(values)
    schema = {"type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "effect": effect, "function": function}


_ORDER: Final = "Number of the order, two digits"
TOOLS: Final = (
    _tool("find_order", "read", "Number of a customer's order.", email="The customer's e-mail", item="Item ordered"),
    _tool("get_order", "read", "Item and status of an order.", order_id=_ORDER),
    _tool("cancel_order", "write", "Cancels an order that is pending or stops one that is shipped.", order_id=_ORDER),
    _tool("return_order", "write", "Opens the return of a delivered order.", order_id=_ORDER),
    _tool("make_label", "pure", "The return label that belongs to an order number.", order_id=_ORDER),
    _tool(
        "search_help",
        "read",
        "Searches the help centre.",
        item="The item the question is about",
        topic="What it is about",
        question="The question in free text",
    ),
)
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    tool["function"]["name"]: tuple(tool["function"]["parameters"]["required"]) for tool in TOOLS
}
