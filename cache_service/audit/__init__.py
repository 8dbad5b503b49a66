"""The audit log: what operators had the service do, in lines that hold each other in place.

Goals: durable before the call is answered; a changed, missing or moved line is found. Non-goals:
it holds no prompt, token or key, and no secret: whoever may write the files can write a new chain,
which only a head kept elsewhere tells apart (`kvtier cache audit verify --head`).
"""
