"""What MLflow needs before it starts: its database in Postgres and its bucket in MinIO, made unless there."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

import boto3
import psycopg
from botocore.exceptions import ClientError
from psycopg import sql

# Of those buckets that are there already, one's own is not an error.
_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def make_database(uri: str, maintenance: str) -> None:
    """The database that `uri` names. maintenance: one that is there, from which it can be made."""
    url = urlsplit(uri)
    name = url.path.lstrip("/")
    # A database can't be made inside a transaction.
    with psycopg.connect(urlunsplit(url._replace(path=f"/{maintenance}")), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def make_bucket(uri: str, endpoint: str) -> None:
    """The bucket of `s3://bucket/…`."""
    try:
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=urlsplit(uri).netloc)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _THERE:
            raise


if __name__ == "__main__":
    make_database(os.environ["MLFLOW_BACKEND_STORE_URI"], "mesh")
    make_bucket(os.environ["MLFLOW_ARTIFACTS_DESTINATION"], os.environ["MLFLOW_S3_ENDPOINT_URL"])
