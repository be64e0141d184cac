"""FastAPI on uvicorn (uvloop, httptools), one process: ``python serve_fastapi.py FOLDER PORT``."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from top_list import TopList

app = FastAPI()
top_list = TopList(sys.argv[1])


class Ask(BaseModel):
    """One request."""

    user_id: str
    k: int = 10


# Not a plain def: a thread for each request would cost more than the millisecond that is computed here.
@app.post("/v1/recommend")
async def recommend(ask: Ask) -> dict[str, object]:
    """Answers one request."""
    return top_list.answer([{"user_id": ask.user_id, "k": ask.k}])[0]


if __name__ == "__main__":
    print("starting", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
