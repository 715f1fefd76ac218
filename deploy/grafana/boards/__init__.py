"""The dashboards as code: `make dashboards` writes them to `deploy/grafana/dashboards`.

Each board is a module with a `board()`; `panels` has what they are made of. Queries use what
`docs/metrics.md` lists and nothing else.
"""
