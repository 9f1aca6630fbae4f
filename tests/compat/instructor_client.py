"""What a user of Instructor does, against a server of this package.

Usage: instructor_client.py BASE_URL MODEL
"""

import sys

import instructor
import openai
from pydantic import BaseModel


class Place(BaseModel):
    """A place to visit."""

    city: str
    days: int


def main() -> None:
    base_url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    options = {"model": model, "messages": [{"role": "user", "content": "A place, as JSON"}], "max_retries": 0}
    for mode in ("TOOLS", "JSON", "JSON_SCHEMA", "MD_JSON"):
        patched = instructor.from_openai(client, mode=instructor.Mode[mode])
        place = patched.chat.completions.create(**options, response_model=Place)
        # Instructor answers with a class of its own, which extends the given one.
        assert place.model_dump() == {"city": "Verona", "days": 2}, (mode, place)
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    partial = list(patched.chat.completions.create_partial(**options, response_model=Place))
    assert partial[-1].model_dump() == {"city": "Verona", "days": 2}
    print("tools, JSON, JSON schema, JSON in Markdown, partial streams")


main()
