"""Link scenarios, shaping plans and their verification.

The work on the packets is done by ``payloads.linkd`` at the base station; here is what the controller asks
of it, and what its answers become in the records.
"""
