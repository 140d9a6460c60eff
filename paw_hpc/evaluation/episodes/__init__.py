"""Kept episodes: what the agent saw, said and was taught, one row per step, in Parquet files of the run
directory.

RUN/episodes/update_000012.parquet              a choice of an update's groups, numbered as in metrics.jsonl
RUN/episodes/eval_000010_update-00010.parquet   all episodes of an evaluation: its update and label

schema.py   the columns, and their version
record.py   rows of what an update, or an evaluation, has in hand; nothing is computed for them alone
spelling.py token ids as text, and where each token ends in it
copier.py   which tokens of an observation were in the one before it
folder.py   whole files, written by the process that writes the run, within a bound; read by anybody
"""
