"""Judge: tasks, floors and the gate. Needs the extra "eval"; never torch."""
