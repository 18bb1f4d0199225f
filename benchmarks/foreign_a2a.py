"""Run by an interpreter with a2a-sdk: its echo agent, by its own request handler, under uvicorn."""

import logging
import socket

import uvicorn
from a2a.helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard
from starlette.applications import Starlette

__all__: list[str] = []

logging.disable(logging.CRITICAL)


class Echo(AgentExecutor):
    async def execute(self, context, event_queue):
        await event_queue.enqueue_event(new_text_message(context.get_user_input(), context_id=context.context_id))

    async def cancel(self, context, event_queue):
        raise NotImplementedError


def main():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    card = AgentCard(name="Echo", description="Echoes", version="1.0.0")
    card.default_input_modes.append("text/plain")
    card.default_output_modes.append("text/plain")
    handler = DefaultRequestHandlerV2(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card)
    app = Starlette(routes=create_jsonrpc_routes(handler, "/a2a"))
    print(f"http://127.0.0.1:{port}", flush=True)
    uvicorn.run(app, port=port, log_config=None, access_log=False, backlog=1_024)


if __name__ == "__main__":
    main()
