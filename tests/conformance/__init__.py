"""`make conformance`: small workflows on Gitea's own runner, in machines and, side by side, in a
plain Debian tree without one.
"""
