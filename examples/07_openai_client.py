"""OpenAI's client with ``awq-edge serve FILE``: text, JSON by a schema, a call of a function."""

import json
import sys

from openai import OpenAI

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
MOOD = {
    "type": "object",
    "properties": {"mood": {"enum": ["glad", "sad", "calm"]}, "certain": {"type": "boolean"}},
    "required": ["mood", "certain"],
    "additionalProperties": False,
}
LAMP = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}

client = OpenAI(base_url=f"{ADDRESS}/v1", api_key="none")
model = client.models.list().data[0].id
say = [{"role": "user", "content": "Good morning! How are you?"}]

for chunk in client.chat.completions.create(model=model, messages=say, seed=1, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD}}
answer = client.chat.completions.create(model=model, messages=say, seed=1, response_format=form)
print(json.loads(answer.choices[0].message.content))

ask = [{"role": "user", "content": "It is dark in the kitchen."}]
tool = {"type": "function", "function": {"name": "switch_lamp", "parameters": LAMP}}
must = {"tools": [tool], "tool_choice": "required"}
answer = client.chat.completions.create(model=model, messages=ask, seed=1, **must)
call = answer.choices[0].message.tool_calls[0].function
print(call.name, json.loads(call.arguments))
