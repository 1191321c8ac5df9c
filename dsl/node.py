"""`@node`: frozen value classes with slots, like `@dataclass(frozen=True, slots=True)` but made in microseconds.

The syntax tree has fifty classes. Making that many dataclasses takes longer than parsing a script: `dataclasses` has to
be imported, and it compiles half a dozen methods per class. Here the methods are shared, and a class compiles its
`__init__` when its first instance is made. To a type checker and to `dataclasses.replace`, `fields` and `is_dataclass`
they are dataclasses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

T = TypeVar("T")


class _LazyFields:
    """`__dataclass_fields__`, made when somebody asks."""

    def __get__(self, instance: object, cls: type[Any]) -> dict[str, Any]:
        if not cls.__match_args__:
            raise AttributeError("__dataclass_fields__")
        import dataclasses

        made = dataclasses.make_dataclass(
            cls.__name__,
            [
                (name, "Any", dataclasses.field(default=cls._defaults[name]))
                if name in cls._defaults
                else (name, "Any")
                for name in cls.__match_args__
            ],
        )
        fields: dict[str, Any] = vars(made)["__dataclass_fields__"]
        cls.__dataclass_fields__ = fields
        return fields


class Node:
    """Base of the classes made by `@node`; `__match_args__` are the names of the fields."""

    __slots__ = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

        @property
        def __match_args__(self) -> tuple[str, ...]: ...

    else:
        __match_args__ = ()
        __dataclass_fields__ = _LazyFields()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__match_args__)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.__match_args__)))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({inner})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r} of a frozen {type(self).__name__}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete field {name!r} of a frozen {type(self).__name__}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)


@dataclass_transform(frozen_default=True)
def node(cls: type[T]) -> type[T]:
    """Class decorator; the class derives from Node and lists its fields as annotations, those with defaults last."""
    names = tuple(cls.__annotations__) if "__annotations__" in cls.__dict__ else ()
    kept = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__", *names)}
    kept["__slots__"] = names
    kept["__match_args__"] = names
    kept["_defaults"] = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    made: Any = type(cls.__name__, cls.__bases__, kept)
    made.__qualname__ = cls.__qualname__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        made.__init__ = _init(made)
        made.__init__(self, *args, **kwargs)

    made.__init__ = __init__
    result: type[T] = made
    return result


def replaced(value: T, /, **changes: Any) -> T:
    """`value`, a node, with some fields changed: dataclasses.replace without importing it."""
    cls: Any = type(value)
    return cls(*(changes[name] if name in changes else getattr(value, name) for name in cls.__match_args__))  # type: ignore[no-any-return]


def _init(cls: Any) -> Any:
    """The class's own `__init__`, compiled: fields by position or name, stored past the guard of `__setattr__`."""
    scope: dict[str, Any] = {}
    params, body = [], [" pass"]
    for name in cls.__match_args__:
        scope[f"set_{name}"] = getattr(cls, name).__set__
        body.append(f" set_{name}(self, {name})")
        if name in cls._defaults:
            scope[f"default_{name}"] = cls._defaults[name]
            params.append(f"{name}=default_{name}")
        else:
            params.append(name)
    exec(f"def __init__(self, {', '.join(params)}):\n" + "\n".join(body), scope)
    return scope["__init__"]
