"""How the documents are shown to a model and scored."""


def doc_to_visual(doc):
    return [image.convert("RGB") for image in doc["images"]]


def process_results(doc, results):
    return {"words": len(results[0].split()), "answered": float(bool(results[0]))}
