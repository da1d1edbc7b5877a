# %% [markdown]
"""Your model in five lines, and a picture of what it saw.

A notebook in jupytext's percent format: Jupyter and editors open it as one, `python examples/your_model.py` runs it.
"""

# %% A folder or a hub id; "embedded" is the small model in the package, which knows rendered scenes alone.
MODEL = "embedded"
PICTURE = "docs/images/scene.png"
QUESTION = "what text is written?"

# %% Load the model and make its inputs, as with any model of transformers.
from gprune.images import open_image
from gprune.models import load
from gprune.prompt import build_inputs

model, processor = load(MODEL)
picture = open_image(PICTURE)
inputs = build_inputs(model, processor, [([picture], QUESTION)])

# %% Answer with 30 % of the visual tokens.
from gprune import Auto

with Auto(keep=0.3)(model) as run:
    output = model.generate(**inputs, max_new_tokens=32)

answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
report = run.images[0]
print(f"{answer} ({report.n_after} of {report.n_before} visual tokens)")

# %% What was kept: a row for each view of the picture. Models that cut a picture into tiles want them drawn apart.
from gprune.draw import centre_crop, draw, tiles_of

drawn = draw(picture, [("auto, 30 %", report)], box=centre_crop(processor, picture.size), tiles=tiles_of(model, inputs))
drawn.save("kept.png")
drawn
