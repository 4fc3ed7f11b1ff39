"""Asks a model that 'awq-edge serve' serves through LangChain.

    pip install langchain-openai
    awq-edge serve chat.awq.gguf
    python examples/06_langchain.py http://127.0.0.1:8080/v1

The key is asked for by the client; without --api-key-file the server does not look at it.
"""

from __future__ import annotations

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="awq-edge", seed=1, max_tokens=60)
prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])

for piece in (prompt | model).stream({"question": "Good morning! How do you do?"}):
    print(piece.content, end="", flush=True)
print()
