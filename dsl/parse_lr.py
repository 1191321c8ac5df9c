"""Runs the grammar's tables: the shift-reduce loop, nothing of the language in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bpfseal.dsl.parse_lex import ERROR, Token
from bpfseal.dsl.parse_tables import ACTIONS, END, GOTOS, RULES

MAX_HEIGHT = 200
"""Height of the syntax tree; every later pass walks it recursively."""

Action = Callable[[list[Any], int, int], Any]
"""Builds a node from its kept children and the offsets where it starts and ends."""


class Unexpected(Exception):
    """`token` cannot stand after `previous`; `expected` are the terminals that could."""

    def __init__(self, token: Token, previous: Token | None, expected: frozenset[int]) -> None:
        super().__init__(token.text)
        self.token = token
        self.previous = previous
        self.expected = expected


class TooDeep(Exception):
    """The tree grew higher than MAX_HEIGHT; `start` and `end` are the offsets of the node that did it."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__("too deep")
        self.start = start
        self.end = end


class _Splice(list[Any]):
    """Children on their way into their parent."""


_actions: dict[int, dict[int, int]] = {}
_gotos: dict[int, dict[int, int]] = {}
_chains: dict[tuple[int, int, int], int] = {}


def _row(table: tuple[str, ...], cache: dict[int, dict[int, int]], state: int) -> dict[int, int]:
    """A row of a table, unpacked when first needed: a short script visits a tenth of the states."""
    pairs = (entry.split(":") for entry in table[state].split())
    row = cache[state] = {int(key): int(value) for key, value in pairs}
    return row


def _chain(base: int, state: int, kind: int) -> int:
    """The state after all reductions of one symbol to another that `kind` asks for, above the state `base`."""
    while True:
        act = (_actions.get(state) or _row(ACTIONS, _actions, state)).get(kind)
        if act is None or act > 0:
            return state
        left, length, action, _ = RULES[-1 - act]
        if length != 1 or action != "":
            return state
        state = (_gotos.get(base) or _row(GOTOS, _gotos, base))[left]


def _fits(states: list[int], kind: int) -> bool:
    """Whether a token of `kind` can really follow: rows are merged (LALR) and hold too much."""
    stack = list(states)
    while True:
        state = stack[-1]
        act = (_actions.get(state) or _row(ACTIONS, _actions, state)).get(kind)
        if act is None:
            return False
        if act > 0:
            return True
        left, length, _, _ = RULES[-1 - act]
        if length:
            del stack[-length:]
        state = (_gotos.get(stack[-1]) or _row(GOTOS, _gotos, stack[-1]))[left]
        if state == END and kind == 0:
            return True
        stack.append(state)


def run(tokens: Iterator[Token], actions: dict[str, Action]) -> Any:
    """The value of the start symbol. Raises Unexpected or TooDeep.

    `actions` maps the names in RULES to the functions that build.
    """
    states = [0]
    values: list[Any] = []
    starts: list[int] = []
    ends: list[int] = []
    heights: list[int] = []
    previous: Token | None = None
    state = 0
    token = next(tokens)
    kind = token.kind
    while True:
        row = _actions.get(state) or _row(ACTIONS, _actions, state)
        act = row.get(kind)
        if act is None:
            fitting = frozenset(k for k in row if _fits(states, k)) if kind != ERROR else frozenset()
            raise Unexpected(token, previous, fitting)
        if act > 0:
            state = act - 1
            states.append(state)
            values.append(token)
            starts.append(token.start)
            ends.append(token.end)
            heights.append(0)
            previous = token
            token = next(tokens)
            kind = token.kind
            continue
        left, length, action, kept = RULES[-1 - act]
        if length == 1 and action == "":
            # a number is a primary is a postfix is a unary …: the values stay, only the state goes on
            known = (states[-2], state, kind)
            state = _chains.get(known, -1)
            if state < 0:
                state = _chains[known] = _chain(*known)
            states[-1] = state
            continue
        if length:
            start, end = starts[-length], ends[-1]
            height = max(heights[-length:])
            children = _children(values[-length:], kept)
            del states[-length:], values[-length:], starts[-length:], ends[-length:], heights[-length:]
        else:
            start = end = token.start
            height = 0
            children = _Splice()
        if action == "*":
            values.append(children)
        elif action == "":
            values.append(children[0])
        else:
            height += 1
            if height > MAX_HEIGHT:
                raise TooDeep(start, end)
            values.append(actions[action](children, start, end))
        starts.append(start)
        ends.append(end)
        heights.append(height)
        state = states[-1]
        state = (_gotos.get(state) or _row(GOTOS, _gotos, state))[left]
        if state == END and kind == 0:
            return values[0]
        states.append(state)


def _children(values: list[Any], kept: tuple[int, ...]) -> _Splice:
    if kept and type(values[0]) is _Splice and kept[0] == 0:
        # a list that grows on the left: append to it instead of copying it
        result: _Splice = values[0]
        kept = kept[1:]
    else:
        result = _Splice()
    for i in kept:
        value = values[i]
        if type(value) is _Splice:
            result.extend(value)
        else:
            result.append(value)
    return result
