"""Recorded traffic: what it is recorded from, how it is kept readable, and how it is played.

    python -m tests.cassettes record --against emulator    everything in cassettes/emulator/, anew
    python -m tests.cassettes record --against aws          a new folder in cassettes/aws/, from your account
    python -m tests.cassettes list                          what there is

`tape` keeps and plays a recording, `facts` are the questions about the service, one each, in plain boto3, and
`conversations` is what the library does on it. `compare` puts recorded requests to the emulator.
"""
