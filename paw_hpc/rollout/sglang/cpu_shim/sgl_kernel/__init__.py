"""Stands in for SGLang's kernel package, which has no build for plain CPUs on PyPI. The CPU engine imports
one function of it, whatever its backends.

Anything else that is asked for exists only as a function that refuses to run, so that a server which needs a
real kernel says so by name.
"""


def assign_req_to_token_pool_cpu(
    req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len
):
    """For each request i, in order, row `req_pool_indices[i]` of `req_to_token` takes the next cache slots at
    positions start[i]:end[i]."""
    taken = 0
    for row, start, end in zip(
        req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True
    ):
        count = end - start
        req_to_token[row, start:end] = out_cache_loc[taken : taken + count].to(req_to_token.dtype)
        taken += count


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*arguments, **options):
        raise NotImplementedError(f"sgl_kernel.{name} has no build for this CPU")

    return refuse
