"""Which module may import which: the one place where the architecture is written down as data."""

NOUNS = {"errors", "types", "evidence", "reports", "reports_vocabulary", "recipe", "recipe_learn", "recipe_text"}
HELPERS = {"text", "progress", "stages", "trimming"}

# Who may import what besides nouns and helpers. A stage that is not named here imports no other stage.
ALLOWED = {
    # A bundle is a model folder with card and plots, and opens as an encoder where its verdict allows.
    "ship.bundle": {"ship.card", "ship.encoder", "ship.folder", "ship.plots", "ship.verdict"},
    "ship.vectors_file": {"ship.alone"},
    # Verified before it leaves and after it comes; one call at a time.
    "ship.hub": {"ship.alone", "ship.bundle", "ship.card", "ship.verdict"},
    "ship.parts": {"judge.gate", "recipe_io", "ship.verdict"},  # a part is held against the floors as the whole is
    "ship.verdict": {"judge.gate", "recipe_io"},  # judged again by the one gate, by rules as recipes have them
    # Which plots there are to show; tables and sections; results as hubs list them.
    "ship.card": {
        *("ship.contamination", "ship.engine_table", "ship.licence_ids", "ship.markdown", "ship.model_index"),
        *("ship.plots", "ship.point_table", "ship.purpose"),
        *("ship.scores", "ship.templates", "ship.vocabulary"),
    },
    "ship.contamination": {"ship.markdown"},
    "ship.plots": {"ship.curves", "ship.point_table", "ship.score_plot", "ship.scores"},  # drawn from the manifest
    "ship.point_table": {"ship.markdown", "ship.parts"},
    "ship.engine_table": {"ship.markdown"},
    "ship.purpose": {"recipe_io", "ship.markdown"},  # rules, as recipes have them
    "ship.scores": {"ship.markdown"},
    "ship.templates": {"ship.markdown"},  # what templates may do with a value
    # Everything that is shipped is made from one captured program.
    "ship.quantize": {
        "ship.folder",
        "ship.graph",
        "ship.openvino_errors",
        "ship.packed_table",
        "ship.weights",
    },  # tables in 4 bits; which is which
    "ship.weights": {"ship.folder", "ship.openvino_errors"},
    "ship.graph": {"learn.exits", "learn.tokens"},  # vectors at early exits and of tokens, as they are learned
    "ship.token_graph": {"ship.graph", "ship.quantize"},  # the same graph, with one more output
    "ship.onnx_format": {"ship.graph"},
    "ship.onnx_dynamic": {"ship.companions", "ship.onnx_format"},  # the same graph, rounded by ONNX Runtime
    "ship.seed_format": {"ship.graph", "ship.seed_model"},  # and the class that goes into the file
    "ship.companions": {"ship.folder", "ship.graph"},  # where prompts stand; what the program takes
    "ship.export_page": {"ship.graph", "ship.licence_ids", "ship.markdown", "ship.templates"},  # what "no limit" is
    "ship.licence_ids": {"ship.markdown"},
    "ship.renewal": {"ship.bundle", "ship.card", "ship.parts", "ship.verdict"},  # a verdict by today's rules
    "ship.report": {"ship.markdown", "ship.scores", "ship.templates"},  # the same order as on the card
    "ship.vocabulary": {"ship.markdown"},
    "ship.engine": {"ship.folder", "ship.machine", "ship.openvino_errors"},  # what the CPU has
    # What the folder holds; how many cores there are; texts in windows and batches.
    "ship.encoder": {"ship.engine", "ship.folder", "ship.machine", "ship.reader", "ship.stream", "ship.texts"},
    "ship.reader": {"ship.beginnings", "ship.folder", "ship.stream", "ship.texts"},
    "ship.stream": {"ship.texts"},
    # Models of other makers: opened, checked and batched as ours; what a text that a table does not know gets.
    "ship.onnx_folder": {"ship.folder", "ship.machine", "ship.texts"},
    "ship.model2vec_folder": {"judge.floors", "ship.texts"},
    "ship.benchmark": {"ship.machine"},  # how many threads "all" is
    # What it scores, with which prompt; a bag of words is fitted to each set; how sure a score is.
    "judge.evaluate": {"judge.floors", "judge.intervals", "judge.kinds", "judge.tasks"},
    "judge.compare": {"judge.evaluate", "judge.intervals"},  # reports and their resampled scores
    # One floor is of the mean alone; what will be scored is known from the tasks.
    "judge.gate": {"judge.tasks"},
    # A task is rows of a format, scored as its kind says; agreement is one without a file.
    "judge.tasks": {"judge.formats", "judge.intervals", "judge.kinds"},
    "judge.agreement": {"judge.formats", "judge.kinds", "judge.metrics", "judge.tasks"},
    # Scores say what they are resampled from.
    "judge.kinds": {"judge.formats", "judge.intervals", "judge.metrics", "judge.probes"},
    "judge.metrics": {"judge.intervals"},
    "judge.probes": {"judge.intervals", "judge.metrics"},  # arrays are refused for the same reasons
    "judge.formats": {"judge.probes"},  # which documents are clustered
    # mteb: an encoder or a part of one becomes its model, which its tasks score and its files name.
    "judge.mteb_model": {"judge.evaluate", "judge.floors", "judge.views"},  # a bag of words can be named, not scored
    "judge.mteb_run": {"judge.evaluate", "judge.formats", "judge.mteb_model"},  # languages are chosen as in files
    "judge.mteb_files": {"judge.evaluate", "judge.mteb_model"},
    "judge.suites": {"judge.mteb_run", "judge.tasks"},  # of both kinds of tasks
    "judge.disagree": {"judge.metrics"},  # nearest neighbours
    "judge.overlap": {"judge.metrics"},
    # A teacher is a loaded model, or a server that is asked, behind a cache.
    "learn.teacher": {"learn.cache", "learn.cached", "learn.fused", "learn.models", "learn.remote", "learn.shards"},
    "learn.cached": {"learn.cache"},  # an encoder in front of its store
    "learn.remote": {"learn.endpoint"},  # asks a server and knows it again
    # Reads, leaves out what is judged by, draws, writes.
    "learn.data": {"learn.draw", "learn.named", "learn.overlap", "learn.rows", "learn.sources"},
    "learn.sources": {"learn.overlap"},  # drops what overlaps as it reads
    # What a teacher was trained on is read and compared as training text is.
    "learn.exposure": {"learn.named", "learn.overlap", "learn.sources"},
    "learn.negatives": {"learn.links", "learn.rows"},  # which rows mean the same; their columns
    # A student is built from kept layers or at random, narrowed, pruned, factorised; an encoder has to be found.
    "learn.shapes": {"learn.width"},  # which families can be narrowed
    "learn.student": {
        *("learn.factors", "learn.head", "learn.models", "learn.prompts", "learn.random_start", "learn.shapes"),
        *("learn.checkpoints", "learn.vocabulary", "learn.width"),  # what a full disk means
    },
    "learn.random_start": {"learn.shapes"},  # the config that it fills
    "learn.width": {"learn.observe"},  # measures the stream that it narrows
    "learn.layers": {"learn.observe", "learn.shapes", "learn.teacher"},  # runs the teacher without some layers
    "learn.vocabulary": {"learn.vocabulary_tokenizer"},  # a student's tokenizer and table are pruned together
    "learn.vocabulary_tokenizer": {"learn.prompts", "learn.vocabulary_bpe"},  # reserved tokens; merges
    # Prices the config that the student would get, and the memory of its training; asks a server for its dim.
    # Bytes of a token on the disk, which a plan states.
    "learn.plan": {"learn.memory", "learn.models", "learn.remote", "learn.shapes", "learn.token_store"},
    "learn.memory": {"learn.models"},  # whether it has bf16
    "learn.alarms": {"learn.causes"},  # names the likely ones
    "learn.watch": {
        "learn.alarms",
        "learn.causes",
        "learn.checkpoints",
        "learn.nonfinite",
        "learn.token_rows",
    },  # rings alarms on what it measures
    "learn.fused": {"learn.halves", "learn.kernels"},  # swaps a layer for its two halves
    "learn.halves": {"learn.kernels"},  # runs kernels between its matrix products
    # Training: what is minimised, on planned batches, by a trainer that is watched, kept and shown.
    "learn.head": {"learn.models"},  # whether this CPU has bf16
    "learn.links": {"learn.rows"},  # pointers as columns
    "learn.batches": {"learn.links"},
    "learn.teachable": {"learn.rows"},  # which rows have pairs
    "learn.tokens": {"learn.head"},  # which heads are linear
    "learn.cache": {"learn.shards"},
    "learn.token_store": {"learn.shards"},
    "learn.token_pass": {"learn.shards", "learn.teacher", "learn.token_store", "learn.tokens"},  # keys of rows
    "learn.stretches": {"learn.token_store"},
    "learn.smooth": {"learn.tokens"},  # what stands after pooling
    "learn.token_objective": {"learn.feed", "learn.losses", "learn.stretches", "learn.token_store", "learn.tokens"},
    "learn.objectives": {"learn.exits", "learn.links", "learn.losses", "learn.shapes", "learn.token_objective"},
    "learn.exits": {"learn.shapes"},  # which exits a student can have
    "learn.feed": {"learn.tokens", "learn.batches", "learn.rows"},  # reads a batch of rows at once
    "learn.nonfinite": set(),
    "learn.evaluation": {
        *("learn.batches", "learn.feed", "learn.history", "learn.links", "learn.nonfinite", "learn.objectives"),
        "learn.losses",  # one that is of all held-out text, not of a batch
    },
    "learn.checkpoints": {"learn.models"},
    "learn.callbacks": {"learn.checkpoints", "learn.history"},
    "learn.live": {"learn.batches", "learn.history"},
    "learn.trainer": {
        *("learn.batches", "learn.checkpoints", "learn.feed", "learn.history", "learn.models", "learn.objectives"),
        *("learn.nonfinite", "learn.trackers"),
    },
    "learn.resume": {"learn.callbacks", "learn.checkpoints", "learn.history", "learn.trainer"},  # one run, in parts
    "learn.train": {
        *("learn.batches", "learn.callbacks", "learn.checkpoints", "learn.evaluation", "learn.feed", "learn.fused"),
        *(
            "learn.history",
            "learn.links",
            "learn.live",
            "learn.resume",
            "learn.rounding",
            "learn.models",
            "learn.objectives",
            "learn.smooth",
            "learn.teachable",
            "learn.token_objective",
            "learn.token_store",
            "learn.trainer",
        ),
    },
    # Wire shapes upon one service, which batches what models it has; one border around all.
    "serve.app": {
        *("serve.border", "serve.embedding", "serve.merged", "serve.ollama", "serve.openai", "serve.openapi"),
        *("serve.reloading", "serve.tei", "serve.wire"),
    },
    "serve.body": {"serve.refusals"},
    "serve.border": {"serve.body", "serve.embedding", "serve.logs", "serve.refusals", "serve.wire"},
    "serve.command": {
        *("serve.app", "serve.embedding", "serve.logs", "serve.merged", "serve.metrics", "serve.models"),
        *(
            "serve.hangups",
            "serve.server",
            "serve.settings",
            "serve.specs",
            "serve.tracing",
            "serve.workers",
            "ship.machine",
            "ship.shipped",
        ),
    },
    "serve.batching": {"serve.jobs", "serve.logs"},  # what waits; what an engine raised
    "serve.embedding": {
        *("serve.batching", "serve.logs", "serve.memory", "serve.merged", "serve.metrics", "serve.models"),
        *("serve.prompts", "serve.refusals", "serve.settings", "serve.specs", "serve.tokens", "ship.beginnings"),
        "ship.texts",
    },
    "serve.metrics": {"serve.batching"},
    "serve.models": {"serve.batching", "serve.refusals", "serve.specs", "ship.bundle", "ship.encoder"},
    "serve.ollama": {"serve.embedding", "serve.models", "serve.refusals", "serve.wire"},
    "serve.openai": {"serve.embedding", "serve.models", "serve.ollama", "serve.refusals", "serve.wire"},
    "serve.openapi": {"serve.refusals"},  # names of the families
    "serve.prompts": {"serve.refusals"},
    "serve.reloading": {"serve.embedding", "serve.logs", "serve.models"},
    # Limits on what is not a request yet, counted and logged as requests are.
    "serve.protocol": {"serve.logs", "serve.metrics", "serve.refusals", "serve.settings"},
    "serve.server": {"serve.embedding", "serve.hangups", "serve.protocol", "serve.reloading"},
    "serve.specs": {"ship.bundle", "ship.card", "ship.folder", "ship.parts", "ship.verdict"},
    "serve.workers": {"serve.logs", "serve.merged"},  # what a process that died had counted
    "serve.tei": {"serve.embedding", "serve.ollama", "serve.refusals", "serve.wire"},
    "serve.tokens": {"serve.refusals", "ship.beginnings", "ship.encoder", "ship.reader", "ship.texts"},
    "serve.wire": {"serve.refusals"},
    # Outside the floors.
    "recipe_io": set(),
}
COMPOSING = {
    *(
        "mining",
        "prepare",
        "guard",
        "steps",
        "measured",
        "pipeline",
        "neighbours",
        "single",
        "race",
        "record",
        "results",
    ),
    *("planning", "points", "training", "choosing", "indexing", "starting", "teaching", "lineage", "unpacking"),
    *("opening", "comparing", "judging", "comparison_page", "exporting", "encoding", "engines"),
    *("bench", "bench_page", "bench_worker", "contenders"),
}
TOP = {"cli", "cli_bundles", "cli_judging", "options", "options_numbers", "options_serving", "__main__", "__init__"}
