"""Chat templates: from messages to the prompt that a model was trained on.

Owns the sandbox in which a template from a file runs; a template is a program by somebody else.
Refuses tokenizing. jinja2 is imported with the first template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from awq_edge.errors import InvalidArgumentError

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **variables: object,
) -> str:
    """The prompt for a conversation.

    Args:
        template: Jinja text, in the form that Hugging Face tokenizers carry it.
        messages: ``{"role": …, "content": …}``, oldest first.
        add_generation_prompt: Whether to end with the opening of the assistant's turn.
        **variables: What else the template may ask for: ``bos_token``, ``eos_token``, ``tools``.

    Raises:
        InvalidArgumentError: The template is broken, or refuses these messages.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except jinja2.TemplateError as error:
        raise InvalidArgumentError(f"The chat template refuses this: {error}.") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"The chat template fails on these messages ({type(error).__name__}: {error}): "
            "each needs a 'role' and a 'content'."
        ) from error


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
