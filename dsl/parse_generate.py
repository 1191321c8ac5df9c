"""Compiles grammar.lark into parse_tables.py: `python -m bpfseal.dsl.parse_generate`.

lark does the work (LALR(1) sets, conflicts, EBNF); what is kept of it are plain tables. Importing lark and building
its parser takes longer than all else that a one-liner needs, so a run of the tool never does either. A test compares
the committed tables with the grammar.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GRAMMAR = HERE / "grammar.lark"
TABLES = HERE / "parse_tables.py"

# Groups of the token pattern, in this order; operators and brackets come last.
CLASSES = ("IDENT", "INTEGER", "STRING", "VARIABLE", "POSITIONAL", "MAP")
# atomic: what is layout never becomes anything else, and a long blank costs no backtracking
LAYOUT = r"(?>\s+|//[^\n]*|/\*[\s\S]*?\*/)*+"


def _table(grammar: str) -> Any:
    from lark import Lark
    from lark.lexer import Lexer

    class Elsewhere(Lexer):
        """Stands for parse_lex.py: no text is lexed here."""

        def __init__(self, conf: object) -> None:
            pass

        def lex(self, lexer_state: object, parser_state: object) -> Any:
            return iter(())

    # debug keeps lark's states in the order they were found, and its names, so that the output is stable
    return Lark(grammar, parser="lalr", lexer=Elsewhere, maybe_placeholders=False, debug=True)


def _literals(lark: Any) -> dict[str, str]:
    """Display text of each terminal: the operator or keyword itself, or the terminal's name."""
    shown = {}
    for terminal in lark.terminals:
        plain = terminal.pattern.type == "str"
        shown[terminal.name] = terminal.pattern.value if plain else terminal.name
    return shown


def tables(grammar: str) -> dict[str, object]:
    """The contents of parse_tables.py by name; see there."""
    lark = _table(grammar)
    parse_table = lark.parser.parser._parse_table
    shown = _literals(lark)
    patterns = {t.name: t.pattern.value for t in lark.terminals if t.pattern.type == "re"}
    rules = list(lark.rules)
    number = {rule: n for n, rule in enumerate(rules)}
    origins = sorted({rule.origin.name for rule in rules})
    terminals = sorted(
        {symbol.name for rule in rules for symbol in rule.expansion if symbol.is_term} | {"$END"},
        key=lambda name: (name != "$END", name),
    )
    order = _order(parse_table)
    renumber = {state: n for n, state in enumerate(order)}
    actions, gotos = [], []
    for state in order:
        row = parse_table.states[state]
        action, goto = [], []
        for name, (kind, value) in sorted(row.items()):
            if name in origins:
                goto.append(f"{origins.index(name)}:{renumber[value]}")
            elif "Shift" in str(kind):
                action.append(f"{terminals.index(name)}:{renumber[value] + 1}")
            else:
                action.append(f"{terminals.index(name)}:{-1 - number[value]}")
        actions.append(" ".join(action))
        gotos.append(" ".join(goto))
    operators = [text for text in shown.values() if not re.match(r"\w", text)]
    pattern = LAYOUT + "(?:" + "|".join(f"({patterns[name]})" for name in CLASSES) + f"|({_operators(operators)}))?"
    return {
        "PATTERN": pattern,
        "TERMINALS": tuple(shown.get(name, name) for name in terminals),
        "RULES": tuple(_rule(rule, origins) for rule in rules),
        "ACTIONS": tuple(actions),
        "GOTOS": tuple(gotos),
        "END": renumber[parse_table.end_states["start"]],
    }


def _operators(operators: list[str]) -> str:
    """A pattern for any of `operators`, the longest first, in few alternatives: it is compiled at every start."""
    single = {o for o in operators if len(o) == 1}
    assigning = {o[0] for o in operators if len(o) == 2 and o[1] == "=" and o[0] in single}
    rest = [o for o in operators if len(o) > 1 and not (len(o) == 2 and o[0] in assigning and o[1] == "=")]
    rest.sort(key=lambda o: (-len(o), o))
    classes = ["[" + "".join(re.escape(o) for o in sorted(group)) + "]" for group in (assigning, single)]
    return "|".join([*(re.escape(o) for o in rest), classes[0] + "=", classes[1]])


def _order(parse_table: Any) -> list[Any]:
    """States in breadth-first order from the start, so that the numbering does not depend on lark's internals."""
    order = [parse_table.start_states["start"]]
    seen = set(order)
    for state in order:
        for _name, (kind, value) in sorted(parse_table.states[state].items()):
            if "Shift" in str(kind) and value not in seen:
                seen.add(value)
                order.append(value)
    return order


def _rule(rule: Any, origins: list[str]) -> tuple[int, int, str, tuple[int, ...]]:
    """(left side, length of the right side, action, indexes of the children that are kept).

    The action is the name of a builder method; "" passes the only child on; "*" splices the children into the
    parent's.
    """
    origin = str(rule.origin.name)
    everything = rule.options.keep_all_tokens
    kept = tuple(
        i for i, symbol in enumerate(rule.expansion) if not symbol.is_term or everything or not symbol.filter_out
    )
    if origin.startswith("_"):
        action = "*"
    elif rule.alias:
        action = str(rule.alias)
    elif rule.options.expand1 and len(kept) == 1:
        action = ""
    else:
        action = origin
    return origins.index(origin), len(rule.expansion), action, kept


def module(grammar: str) -> str:
    """Source text of parse_tables.py."""
    lines = [
        '"""Tables of the grammar: generated by parse_generate.py from grammar.lark, not edited by hand.',
        "",
        "PATTERN    one token after layout; groups: " + " ".join(CLASSES) + " operator",
        "TERMINALS  display text of each terminal, by number; 0 is the end of the text",
        "RULES      (left side, length of the right side, action, kept children)",
        "ACTIONS    a row per state: terminal:action, action > 0 shifts to state action-1, < 0 reduces rule -1-action",
        "GOTOS      a row per state: left side:state",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "# fmt: off",
        "# ruff: noqa: E501",
        "",
    ]
    for name, value in tables(grammar).items():
        if isinstance(value, tuple):
            lines.append(f"{name}: {_annotation(name)} = (")
            lines += [f"    {item!r}," for item in value]
            lines.append(")")
        else:
            lines.append(f"{name} = {value!r}")
    return "\n".join(lines) + "\n"


def _annotation(name: str) -> str:
    return "tuple[tuple[int, int, str, tuple[int, ...]], ...]" if name == "RULES" else "tuple[str, ...]"


def main() -> None:
    TABLES.write_text(module(GRAMMAR.read_text()))


if __name__ == "__main__":
    main()
