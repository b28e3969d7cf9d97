"""The runtime: actors, mailboxes, supervision, codec, records and store.

It knows nothing of language models, torch or any environment, and imports no
other package of Rollwave.
"""
