"""`vmrunner doctor --isolation`: everything that a machine must not be able to do, tried from
inside machines of this very host.
"""
