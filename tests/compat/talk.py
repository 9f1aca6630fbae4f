"""What the model of the clients' server says: a text, a call of a tool, an answer to its result, JSON of a schema.

The chat template chooses by what the client sent: names of tools, their results, and the word JSON in a message.
"""

PLAIN = "The tide is high."
FAIR = "It is fair in Verona."
PLACE = '{"city": "Verona", "days": 2}'


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


SCRIPTS = [
    PLAIN,
    call("weather", '{"city": "Verona"}'),
    FAIR,
    call("Place", PLACE),
    call("final_result", PLACE),
    PLACE,
    call("PartialPlace", PLACE),
]
TEMPLATE = """\
{#- <tool_call> -#}
{%- set results = messages | selectattr('role', 'equalto', 'tool') | list | length -%}
{%- set names = tools | default([], true) | map(attribute='function.name') | list -%}
{%- if 'final_result' in names and (results or 'weather' not in names) %}{% set script = 4 -%}
{%- elif results %}{% set script = 2 -%}
{%- elif 'weather' in names %}{% set script = 1 -%}
{%- elif 'Place' in names %}{% set script = 3 -%}
{%- elif 'PartialPlace' in names %}{% set script = 6 -%}
{%- elif 'JSON' in messages | tojson %}{% set script = 5 -%}
{%- else %}{% set script = 0 -%}
{%- endif -%}
{{- '.' * (script * 128 + 1) }}"""
