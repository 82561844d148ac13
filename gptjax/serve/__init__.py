"""An OpenAI-compatible server whose answers do not depend on their neighbours.

Read in this order: `plan`, which request reads or writes next (pure); `slots`, the compiled
programs; `prefixes`, beginnings that were read before; `engine`, the thread that joins them and
takes requests; `protocol`, requests and answers as JSON; `http`, the routes.
"""
