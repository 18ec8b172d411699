"""The shop of `shopping_assistant`: its goods, the assistant's tools, and the program with which orders are approved.

    python shop.py chats.db ada yes --by "the shop"

With AWS_SESSIONS_REGION=us-west-2 in the environment the store is Amazon Bedrock's, and the file is not used; with
BEDROCK_MODEL=... the model is one of Bedrock's, which calls the tools by its own judgement.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

from llama_index_bedrock_sessions import AlreadyResumed, BedrockSessionsChatStore, Conversation
from llama_index_bedrock_sessions.cli.demo import following, open_model

REGION = os.environ.get("AWS_SESSIONS_REGION")
NAMESPACE = "shop"
GOODS: dict[str, dict[str, Any]] = {
    "stride": {"kind": "running", "colour": "blue", "euros": 129, "sizes": [41, 42, 43]},
    "comet": {"kind": "running", "colour": "red", "euros": 149, "sizes": [42, 44]},
    "feather": {"kind": "running", "colour": "green", "euros": 119, "sizes": [36, 37]},
    "ridge": {"kind": "hiking", "colour": "brown", "euros": 179, "sizes": [42, 43]},
}


def open_store(database: str) -> BedrockSessionsChatStore:
    """Open the store, as each process of the shop does."""
    if REGION:
        return BedrockSessionsChatStore(region_name=REGION, namespace=NAMESPACE)
    return BedrockSessionsChatStore.local(database, namespace=NAMESPACE)


def new_agent(chat: Conversation, kind: type[FunctionAgent] = FunctionAgent) -> FunctionAgent:
    """Make the assistant of a conversation: its tools read and write the named state of that."""

    async def search_shoes(kind: str) -> str:
        """Search the shop for shoes of a kind ("running", "hiking") in the customer's size."""
        customer: Any = await chat.state.aget("customer")
        found = {name: shoe for name, shoe in GOODS.items() if shoe["kind"] == kind}
        fitting = {name: shoe for name, shoe in found.items() if customer["size"] in shoe["sizes"]}
        return json.dumps({name: f"{shoe['colour']}, {shoe['euros']} euros" for name, shoe in fitting.items()})

    async def add_to_cart(name: str) -> str:
        """Put a pair of shoes into the cart."""
        cart: Any = await chat.state.aget("cart", [])
        await chat.state.aupdate(cart=[*cart, name], stage="choosing")
        return json.dumps([*cart, name])

    async def view_cart() -> str:
        """Tell what is in the cart."""
        return json.dumps(await chat.state.aget("cart", []))

    async def place_order(ctx: Context) -> str:
        """Order what is in the cart; a human of the shop has to approve it."""
        cart: Any = await chat.state.aget("cart", [])
        price = sum(GOODS[name]["euros"] for name in cart)
        question = InputRequiredEvent.model_validate(
            {"prefix": f"{chat.key} orders {', '.join(cart)} for {price} euros. Approve?"}
        )
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question)
        # What stands above is done once more when the workflow is resumed; what stands below, once.
        if answer.response != "yes":
            return "not approved"
        orders: Any = await chat.state.aget("orders", [])
        await chat.state.aupdate(orders=[*orders, cart], cart=[], stage="ordered")
        return f"ordered: {', '.join(cart)}, {price} euros"

    model = open_model(os.environ.get("BEDROCK_MODEL"), following(SCRIPT), region=REGION)
    return kind(llm=model, tools=[search_shoes, add_to_cart, view_cart, place_order])


def _last(messages: Sequence[ChatMessage]) -> str:
    """Give what the last tool returned."""
    return [message.content or "" for message in messages if message.role.value == "tool"][-1]


SCRIPT: dict[str, Any] = {
    "running shoes": [
        ("search_shoes", {"kind": "running"}),
        lambda messages: f"In your size: {'; '.join(f'{n} ({w})' for n, w in json.loads(_last(messages)).items())}.",
    ],
    "blue ones": [
        ("add_to_cart", {"name": "stride"}),
        lambda messages: f"In your cart: {', '.join(json.loads(_last(messages)))}.",
    ],
    "red ones": [
        ("add_to_cart", {"name": "comet"}),
        lambda messages: f"In your cart: {', '.join(json.loads(_last(messages)))}.",
    ],
    "Are you there": [
        lambda messages: f"Yes, and so is your cart: {', '.join(json.loads(_last(messages)))}.",
    ],
    "Order": [("place_order", {}), lambda messages: f"Thank you! {_last(messages).capitalize()}."],
}
"""What the scripted model does when it is asked so: it calls tools, and says what follows from their results."""


async def answer_order(database: str, key: str, answer: str, by: str) -> str:
    """Answer the paused order of a conversation, in whatever process this is; of all who do, one is heard."""
    store = open_store(database)
    chat = store.conversation(key)
    agent = new_agent(chat)
    try:
        context = await chat.aload_context(agent, "order", by=by)
    except AlreadyResumed as error:
        return f"{type(error).__name__}: {error.by} has answered it."
    async with chat.invocation("The order is answered", by=by):
        handler = agent.run(ctx=context)
        handler.ctx.send_event(HumanResponseEvent.model_validate({"response": answer}))
        return str(await handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer the paused order of a customer.")
    parser.add_argument("database")
    parser.add_argument("key")
    parser.add_argument("answer", choices=["yes", "no"])
    parser.add_argument("--by", required=True)
    print(asyncio.run(answer_order(**vars(parser.parse_args()))))
