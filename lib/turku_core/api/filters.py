"""Filter sets: splicing ``merge NAME`` rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from django.core.exceptions import ValidationError

from turku_core import fields
from turku_core.api.models import FilterSet
from turku_core.fields import FieldError


def splice(rules: Iterable[str], rules_of: Callable[[str], Sequence[str] | None]) -> list[str]:
    """Return `rules` with each ``merge NAME`` replaced by the rules of that filter set.

    Args:
        rules: Rules that have passed `fields.filter_rule_or_set`.
        rules_of: Gives the rules of a filter set, or None when there is no such set.

    Raises:
        FieldError: A set isn't there, a set merges itself (directly or through others), a set's
            rule isn't valid, or there are more rules than an agent takes.
    """
    spliced: list[str] = []

    def add(these: Iterable[str], path: tuple[str, ...]) -> None:
        for rule in these:
            # Checked here too: a filter set is whatever an operator's SQL left in the table.
            name = fields.filter_set_name(fields.filter_rule_or_set(rule, _place(path)))
            if name is None:
                spliced.append(fields.filter_rule(rule, _place(path)))
            elif name in path:
                circle = " merges ".join((*path[path.index(name) :], name))
                raise FieldError("filter", f"filter sets must not merge themselves: {circle}")
            else:
                found = rules_of(name)
                if found is None:
                    raise FieldError(
                        _place(path), f"there is no filter set named {name} on the API"
                    )
                add(found, (*path, name))
            if len(spliced) > fields.RULES_MAX:
                raise FieldError(
                    "filter", f"must have at most {fields.RULES_MAX} rules, those merged included"
                )

    add(rules, ())
    return spliced


def _place(path: tuple[str, ...]) -> str:
    return f"filter set {path[-1]}" if path else "filter"


def stored_rules(name: str) -> Sequence[str] | None:
    """Return the rules of a filter set of the database, or None when there is no such set."""
    found = FilterSet.objects.filter(name=name).values_list("rules", flat=True).first()
    return list(found) if isinstance(found, (list, tuple)) else None


def check_filter_set(filter_set: FilterSet) -> None:
    """Hold a filter set that an operator saves to the rules; used by `FilterSet.clean`.

    Raises:
        ValidationError: A rule isn't valid, or the set would merge itself or one that isn't there.
    """
    try:
        fields.name(filter_set.name, "name")
        rules = fields.items(filter_set.rules, "rules", fields.filter_rule_or_set)

        def rules_of(name: str) -> Sequence[str] | None:
            return rules if name == filter_set.name else stored_rules(name)

        splice([f"merge {filter_set.name}"], rules_of)
    except FieldError as error:
        raise ValidationError(str(error)) from error
