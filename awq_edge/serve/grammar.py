"""What an answer must be valid by, and what bytes a token stands for: llguidance behind one door.

llguidance and not xgrammar, because its wheel is small (3 MB against 35), is one for every Python
and exists for aarch64, needs no torch, computes a mask in microseconds without compiling a schema
first, and reads JSON schemas strictly: what it cannot enforce it refuses, by name.

Owns the conversion of schemas to constraints. Refuses to let an answer go out unconstrained: a
schema that cannot be enforced is an error before the first token.
"""

from __future__ import annotations

import functools
import itertools
import json
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from awq_edge.errors import InvalidArgumentError
from awq_edge.serve.faults import RequestError

if TYPE_CHECKING:
    import numpy as np
    from llguidance._lib import JsonCompileOptions
    from numpy.typing import NDArray

    from awq_edge.model import Model
    from awq_edge.serve.tool_formats import ToolFormat

_tables: weakref.WeakKeyDictionary[Model, TokenTable] = weakref.WeakKeyDictionary()
_REASON_CHARACTERS = 300
# JSON Schema 2020-12, validation, section 7.3.
_FORMATS = frozenset(
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri "
    "uri-reference iri iri-reference uuid uri-template json-pointer relative-json-pointer "
    "regex".split()
)
# Keywords that hold schemas by names of others' choice, and those that hold one or several.
_TABLES_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMAS = frozenset(
    "items prefixItems additionalProperties additionalItems contains propertyNames "
    "anyOf allOf oneOf not if then else".split()
)
# Where one of them is, what is valid by a part may have to be valid, or not valid, by another.
_COMBINING = frozenset(
    ("allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef")
)
# So it is where one of the first two has another of all these beside it.
_ELSEWHERE = frozenset(("anyOf", "$ref"))
_OF_A_VALUE = _ELSEWHERE | frozenset(
    "properties patternProperties additionalProperties propertyNames required minProperties "
    "items prefixItems additionalItems contains".split()
)
# An object's keywords that say something of properties without a name.
_OPENING = ("additionalProperties", "patternProperties", "propertyNames", "minProperties")
# An array's keywords with which its different values can be listed, and how many: 256 arrays.
_OF_SUBSETS = frozenset(
    ("type", "items", "uniqueItems", "minItems", "maxItems", "title", "description", "default")
)
_MOST_OF_SUBSETS = 8
# As Python writes JSON. With white space left free, a small model would write it without end.
_STYLE: JsonCompileOptions = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}


class TokenTable:
    """The vocabulary of a model as bytes."""

    def __init__(self, model: Model) -> None:
        """Reads the file's tokenizer.

        Raises:
            InvalidArgumentError: There is none, or one that no form can be enforced with.
        """
        from llguidance import LLTokenizer

        text = model.metadata.get("tokenizer.huggingface.json")
        if not isinstance(text, str):
            raise InvalidArgumentError("The model file holds no tokenizer.")
        self.eos = model.eos_token_ids
        self.vocabulary_size = model.info.vocabulary_size
        try:
            self.tokenizer = LLTokenizer(
                text, self.vocabulary_size, self.eos[0] if self.eos else None
            )
        except Exception as error:  # the package raises ValueError, and others inside
            raise InvalidArgumentError(
                "This model's tokenizer does not tell which bytes its tokens stand for, so that no "
                "form of an answer can be enforced, no call of a function and no log-probabilities "
                f"be given ({_reason(error)})."
            ) from error
        self._model = weakref.ref(model)
        self.bytes = functools.lru_cache(maxsize=4096)(self._bytes)

    def _bytes(self, token: int) -> bytes:
        """The bytes of a token; a special token's name."""
        if self.tokenizer.is_special_token(token):
            model = self._model()
            return b"" if model is None else model.tokenizer.token_text(token).encode()
        return bytes(self.tokenizer.decode_bytes([token]))


def token_table(model: Model) -> TokenTable:
    """The table of a model, made at first use."""
    table = _tables.get(model)
    if table is None:
        table = _tables[model] = TokenTable(model)
    return table


def _enforceable(schema: Any) -> Any:
    """A schema whose every valid answer is valid by another one, and easier to keep to.

    A ``format`` that the standard does not define says nothing about validity (Home Assistant
    writes ``entity_id``); an array of different values of a short list is one of some arrays; an
    object has the properties that are named, and none that a model makes up, where the schema does
    not ask for others.
    """
    return _narrowed(schema, closes=not _combines(schema))


def _combines(schema: Any) -> bool:
    """Whether a value may have to be valid by two schemas; a property called so counts as well."""
    if isinstance(schema, list):
        return any(_combines(one) for one in schema)
    if not isinstance(schema, dict):
        return False
    return (
        not _COMBINING.isdisjoint(schema)
        or (not _ELSEWHERE.isdisjoint(schema) and len(_OF_A_VALUE & schema.keys()) > 1)
        or any(_combines(one) for one in schema.values())
    )


def _narrowed(schema: Any, *, closes: bool) -> Any:
    if isinstance(schema, list):
        return [_narrowed(one, closes=closes) for one in schema]
    if not isinstance(schema, dict):
        return schema
    subsets = _subsets(schema)
    if subsets is not None:
        return subsets
    found = {}
    for name, value in schema.items():
        if name == "format" and isinstance(value, str) and value not in _FORMATS:
            continue
        if name == "uniqueItems" and value is False:  # as if it were not there
            continue
        if name in _TABLES_OF_SCHEMAS and isinstance(value, dict):
            value = {key: _narrowed(one, closes=closes) for key, one in value.items()}
        elif name in _SCHEMAS:
            value = _narrowed(value, closes=closes)
        found[name] = value
    properties, required = schema.get("properties"), schema.get("required", [])
    if (
        closes
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(name in properties for name in required)
        and not any(name in schema for name in _OPENING)
    ):
        found["additionalProperties"] = False
    return found


def _subsets(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """An array of different values of a short list, as one of all such arrays in its order."""
    items = schema.get("items")
    if (
        schema.get("uniqueItems") is not True
        or schema.get("type") != "array"
        or not isinstance(items, dict)
        or not set(schema) <= _OF_SUBSETS
        or not set(items) <= {"type", "enum"}
        or items.get("type", "string") != "string"
    ):
        return None
    values, bounds = items.get("enum"), (schema.get("minItems", 0), schema.get("maxItems", 2**31))
    if (
        not isinstance(values, list)
        or len(values) > _MOST_OF_SUBSETS
        or not all(isinstance(value, str) for value in values)
        or not all(isinstance(bound, int) for bound in bounds)
    ):
        return None
    values = list(dict.fromkeys(values))
    sizes = range(max(0, bounds[0]), min(len(values), bounds[1]) + 1)
    chosen = [list(one) for size in sizes for one in itertools.combinations(values, size)]
    return {"enum": chosen} if chosen else None


def schema_grammar(schema: Any) -> str:
    """The grammar of answers that are valid by a JSON schema; True: any JSON object.

    Raises:
        RequestError: The schema is none, or asks for what cannot be enforced.
    """
    from llguidance import LLMatcher

    document: Any = {"type": "object"} if schema is True else schema
    if isinstance(document, dict) and "x-guidance" in document:
        raise RequestError("The schema has the field x-guidance, which is no part of JSON schemas.")
    try:
        text = json.dumps(_enforceable(document))
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_STYLE)
    except Exception as error:  # the package raises ValueError, and others inside
        raise RequestError(f"The JSON schema cannot be used: {_reason(error)}.") from error
    fault = LLMatcher.validate_grammar(grammar)
    if fault:
        raise RequestError(f"The JSON schema cannot be used: {_reason(fault)}.")
    return str(grammar)


def tool_grammar(form: ToolFormat, tools: Sequence[Mapping[str, Any]], table: TokenTable) -> str:
    """The grammar of answers that call one of the functions, in a model's own format.

    Raises:
        RequestError: A schema is none, or asks for what cannot be enforced.
    """
    from llguidance import LLMatcher

    calls = []
    for tool in tools:
        function = tool["function"]
        properties = {
            "name": {"const": function["name"]},
            form.arguments: _enforceable(function["parameters"]),
        }
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    document = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = json.dumps({**document, "x-guidance": _STYLE})
    body = '"[" call "]"' if form.is_list else "call"
    parts = [_terminal(form.begin, table), body, _terminal(form.end, table)]
    grammar = f"start: {' '.join(filter(None, parts))}\ncall: %json {schema}\n"
    text = str(LLMatcher.grammar_from_lark(grammar))
    fault = LLMatcher.validate_grammar(text, table.tokenizer)
    if fault:
        raise RequestError(f"A schema of tools cannot be used: {_reason(fault)}.", param="tools")
    return text


def _terminal(marker: str, table: TokenTable) -> str:
    """A marker in Lark: a special token by its name, otherwise its text."""
    if not marker:
        return ""
    ids = table.tokenizer.tokenize_str(marker, parse_special=True)
    if len(ids) == 1 and table.tokenizer.is_special_token(ids[0]):
        return f"<[{ids[0]}]>"
    return json.dumps(marker)


class GrammarConstraint:
    """What may be drawn so that the answer is a sentence of a grammar."""

    def __init__(self, table: TokenTable, grammar: str) -> None:
        """Begins an answer.

        Raises:
            RequestError: The grammar cannot be enforced.
        """
        import numpy as np
        from llguidance import LLMatcher

        self._matcher = LLMatcher(table.tokenizer, grammar, log_level=0)
        if self._matcher.is_error():
            raise RequestError(
                f"The form of the answer cannot be enforced: {_reason(self._matcher.get_error())}."
            )
        self._table = table
        self._read = 0
        self._words = np.zeros((1, (table.vocabulary_size + 31) // 32), np.uint32)

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each token may follow: bool [vocabulary]."""
        import numpy as np

        for token in tokens[self._read :]:
            if not self._matcher.consume_token(token):
                raise InvalidArgumentError(
                    f"The form of the answer cannot be enforced: "
                    f"{_reason(self._matcher.get_error() or 'a token does not fit')}."
                )
            self._read += 1
        size = self._table.vocabulary_size
        if self._matcher.is_stopped():
            allowed = np.zeros(size, np.bool_)
        else:
            self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            if self._matcher.is_error():
                raise InvalidArgumentError(
                    f"The form of the answer cannot be enforced: "
                    f"{_reason(self._matcher.get_error())}."
                )
            bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
            allowed = bits[:size].astype(np.bool_)
        # An answer that may end does so by any of the model's end tokens.
        ends = list(self._table.eos)
        allowed[ends] = self._matcher.is_accepting() or self._matcher.is_stopped()
        return allowed


def _reason(error: object) -> str:
    text = " ".join(str(error).split())
    if len(text) > _REASON_CHARACTERS:
        text = text[:_REASON_CHARACTERS] + " …"
    return text.rstrip(".")
