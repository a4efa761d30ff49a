"""The policies of stimopt; see the files beside this one."""

if __name__ != "stimopt.policies":
    raise ImportError("import stimopt.policies, not policies: the bare name would make a second copy of every class")
