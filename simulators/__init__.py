"""The simulators of stimopt; see the files beside this one."""

if __name__ != "stimopt.simulators":
    raise ImportError(
        "import stimopt.simulators, not simulators: the bare name would make a second copy of every class"
    )
