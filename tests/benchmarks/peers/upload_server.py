"""The peer of `upload`: what one writes with FastAPI's `UploadFile` and the MinIO client.

Routes: `/async` reads the file and stores it in the handler, as tutorials do, which holds up the event
loop; `/threads` does it in a plain function, which FastAPI runs in its thread pool.
"""

from __future__ import annotations

import io
import sys
import uuid

import uvicorn
from fastapi import FastAPI, UploadFile
from minio import Minio

endpoint, access_key, secret_key, bucket, port = sys.argv[1:]

app = FastAPI()
client = Minio(endpoint, access_key=access_key, secret_key=secret_key, secure=False)


@app.post("/async")
async def upload_async(file: UploadFile) -> dict[str, str]:
    data = await file.read()
    key = f"peer/{uuid.uuid4()}.jpg"
    client.put_object(bucket, key, io.BytesIO(data), len(data), content_type=file.content_type or "")
    return {"minio_path": f"{bucket}/{key}"}


@app.post("/threads")
def upload_threads(file: UploadFile) -> dict[str, str]:
    key = f"peer/{uuid.uuid4()}.jpg"
    client.put_object(bucket, key, file.file, file.size or 0, content_type=file.content_type or "")
    return {"minio_path": f"{bucket}/{key}"}


uvicorn.run(app, port=int(port), access_log=False, log_level="warning")
