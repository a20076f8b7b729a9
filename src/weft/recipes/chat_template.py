"""A chat template in the Jinja form that `transformers` reads."""

from __future__ import annotations

import json

from weft.data.templates import TEMPLATES, Template

_FORM = """\
{%- if messages[0]['role'] != 'system' -%}{{ [default_system] }}{%- endif -%}
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- set header = {'system': [system_header], 'user': [user_header], 'assistant': [assistant_header]}[role] -%}
{%- set footer = {'system': [system_footer], 'user': [user_footer], 'assistant': [answer_end]}[role] -%}
{%- set lead = [answer_lead] if role == 'assistant' else '' -%}
{%- set between = [between] if not loop.first or (role != 'system' and [default_system]) else '' -%}
[opening]
{%- if message['content'] is string -%}
{%- if role == 'assistant' or [user_text] -%}{{ message['content'] }}{%- endif -%}
{%- else -%}
[content]
{%- endif -%}
{{ footer }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ [between] + [assistant_header] }}{%- endif -%}"""

_OPENING = "{{ between + header + lead }}"

_OPENING_BEHIND_MEDIA = """\
{{ between }}
{%- if message['content'] is not string -%}
[media]
{%- endif -%}
{{ header + lead }}"""

_IN_ORDER = """\
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set adjacent = not loop.first and loop.previtem['type'] == 'image' -%}
{{ ('' if adjacent else [media_around]) + [marker] + [media_around] }}
{%- elif role == 'assistant' or [user_text] -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}"""

_MEDIA = """\
{%- set media = message['content'] | selectattr('type', 'equalto', 'image') | list -%}
{%- for part in media -%}{{ [media_header] + [marker] + [media_footer] }}{%- endfor -%}"""

_COUNTED_MEDIA = _MEDIA.replace(
    "{{ [media_header]", "{%- set seen.media = seen.media + 1 -%}{{ ([media_header] | replace('{number}', seen.media | string))"
)

_WORDS = """\
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}
{%- if role == 'assistant' or [user_text] -%}{{ text | trim if media else text }}{%- endif -%}"""

_USER_HEADER = (
    "{'system': [after_system], 'assistant': [after_answer]}"
    ".get([first] if loop.first else loop.previtem['role'], [user_header])"
)

_STRINGS = (
    "system_header", "system_footer", "user_header", "user_footer", "assistant_header", "answer_lead", "answer_end",
    "between", "end", "media_header", "media_footer", "media_around", "user_text", "begin",
)  # fmt: skip


def jinja(template: Template, marker: str = "<image>") -> str:
    """The template as `transformers` renders it; `marker` stands for an image."""
    fields = {
        "default_system": template.system_header + template.system + template.system_footer if template.system else "",
        "marker": "" if template.media_before_begin else marker,  # such a model's processor writes the images itself
        **{name: getattr(template, name) for name in _STRINGS},
    }
    counted = "{number}" in template.media_header
    media = _COUNTED_MEDIA if counted else _MEDIA
    opening, content = _OPENING, media + "\n" + _WORDS if template.media_first else _IN_ORDER
    if template.media_first and template.media_before_turn:
        opening, content = _OPENING_BEHIND_MEDIA.replace("[media]", media), _WORDS
    text = _FORM.replace("[opening]", opening).replace("[content]", content)
    if counted:
        text = "{%- set seen = namespace(media=0) -%}\n" + text
    if template.end:
        text = text.removesuffix("{%- endif -%}") + "{%- else -%}{{ [end] }}{%- endif -%}"
    if template.begin and template.media_before_turn:
        text = text.replace("{{ header", "{{ ([begin] if loop.first else '') + header")
    elif template.begin:
        text = "{{ [begin] }}\n" + text
    after = {"after_system": template.user_header_after_system, "after_answer": template.user_header_after_answer}
    if any(header is not None for header in after.values()):
        text = text.replace("'user': [user_header]", f"'user': {_USER_HEADER}")
        usual = {name: template.user_header if header is None else header for name, header in after.items()}
        fields |= usual | {"first": "system" if template.system else ""}
    for name, value in fields.items():
        text = text.replace(f"[{name}]", json.dumps(value))
    return text


def recognise(text: str | None, marker: str = "<image>") -> str | None:
    """The name of the template that `jinja` would write so; None for a text of other origin."""
    candidates = (name for name, template in TEMPLATES.items() if not template.caption)
    return next((name for name in candidates if text is not None and text.strip() == jinja(TEMPLATES[name], marker)), None)
