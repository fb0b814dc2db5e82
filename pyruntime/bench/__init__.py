"""How fast a model runs here, beside what this machine can do: what stands behind `pyruntime bench`.

`work` counts what a step must read and multiply, `limits` measures how fast this machine reads and multiplies, `measure` takes
both in turns, `profile` looks inside a step, `report` and `pictures` show what came out.
"""
