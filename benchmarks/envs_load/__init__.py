"""What the OpenEnv server of the environments bears: many sessions, clients and servers killed in the middle,
hostile clients all the while.

    python -m benchmarks.envs_load alfworld [--sessions 256] [--seconds 600] [--data generated]

(In an environment with paw-hpc[openenv].) Random walks are played on the bare interface first. Then a server
with a key is started as a user would, and processes of clients play these walks again, each session one after
the other: every state must be that of the walk, so a session that is handed another's answer is noticed
(control: two sessions exchange their websockets, and it is). A process of hostile clients asks without the
key, with a wrong one, sends too much, nonsense, and nothing at all, and wants more sessions than there are.
Processes of clients are killed (SIGKILL), one every `--kill-client-s`, and the server at a sixth and at a
third of the time: what they leave behind is counted. All share the machine.
"""
