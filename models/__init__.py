"""The models of stimopt; see the files beside this one."""

if __name__ != "stimopt.models":
    raise ImportError("import stimopt.models, not models: the bare name would make a second copy of every class")
