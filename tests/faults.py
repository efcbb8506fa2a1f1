"""Planted faults: each is planted alone in a copy of the checkout, and the tests beside it have to fail.

A test that no fault can fail is not a test. Whoever changes a test, or the code that a fault stands in, runs its faults
again::

    make faults                                     # all of them
    python tests/faults.py --only adam --jobs 2     # those whose name, file or tests have "adam" in them
    python tests/faults.py --list
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "results", ".*_cache", "build", "dist")
SECONDS = 1800  # of the tests of one fault; a busy machine is no fault that was noticed, so being late is not caught


@dataclass(frozen=True)
class Fault:
    """One fault: what it is called, where it stands, and which tests are to notice it."""

    name: str
    file: str
    old: str
    """Stands in the file exactly once."""
    new: str
    tests: tuple[str, ...]
    """``folder/test_file.py::test_name``, below tests/, and in brackets what its parameters must be among others."""


CONTRACT = "editors/test_contract.py::"
ORDER = f"{CONTRACT}test_order_and_chunks_change_nothing[lora, gpt2]"
ALONE = f"{CONTRACT}test_trained_together_is_trained_alone[lora, gpt2, clipping and dropout]"
STOPPING = f"{CONTRACT}test_stopping_early_together_is_stopping_alone[lora, gpt2]"
FINISHED = f"{CONTRACT}test_a_finished_edit_is_as_it_was_when_it_stopped[lora, gpt2]"
NAN = f"{CONTRACT}test_a_loss_that_becomes_nan_leaves_the_others[lora, gpt2]"
LEFT = f"{CONTRACT}test_the_model_is_left_as_it_was[lora, gpt2]"
MERGED = f"{CONTRACT}test_a_merged_edit_computes_what_the_attached_one_does[lora, gpt2]"
LOSS = "engine/training/test_loop.py::test_the_loss_of_one_edit_is_the_mean_of_its_facts_and_of_its_anchors[gpt2]"
LEAVING = "engine/training/test_loop.py::test_when_edits_leave_the_batch_the_others_are_held_to_their_own_predictions"
ADAM = "engine/patches/test_adam.py::test_adam_is_torchs_adam_for_every_edit_from_its_own_first_step"
PEFT = "editors/test_lora.py::test_an_edit_is_what_peft_trains_in_a_plain_loop[llama, 3]"
FRESH = "editors/test_lora.py::test_a_fresh_edit_changes_nothing[gpt2]"
RULE = "editors/test_roselora.py::test_an_edit_is_what_the_papers_rule_makes[gpt2, changes0]"
JOINED = "engine/model/test_decoder.py::test_rows_that_come_and_go_are_written_as_alone"
CLAIMS = "evaluation/test_claims.py::"
CLASSIFICATION = "evaluation/classification/"
OPENAI = "roof/server/test_openai.py::"
TIES = "editors/test_roselora.py::test_of_equal_sensitivities_the_first_are_kept"
PROBES = "evaluation/test_scoring.py::test_every_probe_is_what_a_slow_loop_sees[gpt2]"
SAME = "evaluation/test_scoring.py::test_an_edit_that_changes_nothing_writes_what_the_unedited_model_writes[gpt2]"
TEXTS = "evaluation/test_scoring.py::test_texts_are_sampled_from_the_facts_own_stream[gpt2]"

LOOP, BATCHES = "engine/training/loop.py", "engine/training/batches.py"
PATCH, BRANCHES, ROWS, OPTIMIZER = (f"engine/patches/{name}.py" for name in ("patch", "branches", "rows", "adam"))
PASSES, ENCODING, SITES, GENERATION = (
    f"engine/model/{name}.py" for name in ("passes", "encoding", "sites", "generation")
)
BASE, LORA, ROSELORA = (f"editors/{name}.py" for name in ("base", "lora", "roselora"))
SCORING, SEEDS = "evaluation/scoring.py", "engine/seeds.py"

FAULTS = (
    # Claims and bundles
    Fault(
        "any way taken for all",
        "evaluation/metrics.py",
        "found.append(float(any(all(way) for way in ways.values())))",
        "found.append(float(all(all(way) for way in ways.values())))",
        (
            f"{CLAIMS}test_a_score_is_the_loops",
            f"{CLAIMS}test_any_of_several_ways_is_enough_and_each_needs_all_of_its_probes",
        ),
    ),
    Fault(
        "what is given asked of the edited model",
        "evaluation/metrics.py",
        "if all(score(probe, probe.base) == 1 for place, probe in claim if place.way is None)",
        "if all(score(probe, probe.edited) == 1 for place, probe in claim if place.way is None)",
        (f"{CLAIMS}test_a_claim_counts_only_where_the_unedited_model_knows_what_is_given",),
    ),
    Fault(
        "claims of all groups as one",
        "evaluation/metrics.py",
        "if probe.group == group and probe.place is not None:",
        "if probe.place is not None:",
        (f"{CLAIMS}test_a_score_is_the_loops",),
    ),
    Fault(
        "half a bundle in a group",
        "evaluation/runs.py",
        "ordered = sorted(bundles(facts), key=length, reverse=True)",
        "ordered = sorted(([fact] for fact in facts), key=length, reverse=True)",
        (f"{CLAIMS}test_groups_of_a_run_hold_whole_bundles",),
    ),
    Fault(
        "a bundle's facts edited one by one",
        "evaluation/work.py",
        "alone = [fact for one in changes if len(one) == 1 for fact in one]",
        "changes = [[fact] for fact in facts]\n    alone = [*facts]",
        (f"{CLAIMS}test_a_bundle_is_one_edit_and_counts_as_one_fact",),
    ),
    # Benchmarks' forms
    Fault(
        "all of a test's queries taken for any",
        "data/rippleedits.py",
        "ways = [tuple(probe for own in ways for probe in own)]",
        "ways = [*ways]",
        ("data/test_data_formats.py::test_rippleedits_tests_are_claims_that_count_where_their_conditions_are_known",),
    ),
    Fault(
        "every category taken for one that was seen",
        "data/webnlg.py",
        'lambda name: "seen" if name in known else "unseen"',
        'lambda name: "seen" if name or known else "unseen"',
        ("data/test_generation_data.py::test_webnlg_says_the_same_as_xml_and_as_json_and_tells_categories_not_seen",),
    ),
    # Classification
    Fault(
        "calibration fitted on test",
        "evaluation/classification/runs.py",
        'NONE, BOTH, HELD_OUT = "none", "both", "dev"',
        'NONE, BOTH, HELD_OUT = "none", "both", "test"',
        (f"{CLASSIFICATION}test_runs.py::test_calibration_is_fitted_on_dev_and_never_on_test",),
    ),
    Fault(
        "what is fitted on dev scored there",
        "evaluation/classification/runs.py",
        "beside = {} if name == HELD_OUT else fitted",
        "beside = fitted",
        (
            f"{CLASSIFICATION}test_runs.py::test_the_ensemble_reports_its_members_and_both_ways_to_join_them",
            f"{CLASSIFICATION}test_runs.py::test_one_classifier_is_calibrated_beside_its_own_answer",
        ),
    ),
    Fault(
        "a member's temperature of all texts",
        "evaluation/classification/calibration.py",
        "own = [np.isin(classes, (0, m + 1)) for m in range(odds.shape[1])]",
        "own = [np.isin(classes, classes) for _ in range(odds.shape[1])]",
        (f"{CLASSIFICATION}test_calibration.py::test_a_members_temperature_is_of_the_texts_of_its_two_classes_alone",),
    ),
    Fault(
        "a temperature without Platt's targets",
        "evaluation/classification/calibration.py",
        "counts[:, None] + 1, 1) / (counts[:, None] + classes)",
        "1, 0)",
        (
            f"{CLASSIFICATION}test_calibration.py::test_a_temperature_is_the_best_of_a_fine_grid",
            f"{CLASSIFICATION}test_calibration.py::test_a_member_without_a_fault_on_few_texts_gets_no_boundless_odds",
        ),
    ),
    Fault(
        "a calibration error of unsigned texts",
        "evaluation/classification/metrics.py",
        "np.abs(np.bincount(bins, right - sure)).sum()",
        "np.bincount(bins, np.abs(right - sure)).sum()",
        (f"{CLASSIFICATION}test_metrics.py::test_log_loss_and_calibration_error_are_what_slow_loops_give",),
    ),
    Fault(
        "power without the spread of the effect",
        "benchmarks/aqua_power.py",
        "norm.ppf(1 - LEVEL / 2) * at_chance + norm.ppf(POWER) * at_effect",
        "norm.ppf(1 - LEVEL / 2) * at_chance",
        ("benchmarks/test_aqua_power.py::test_so_many_questions_find_the_effect_in_four_of_five_experiments",),
    ),
    # Training
    Fault(
        "a value added nowhere, since the subject begins what is run in each step",
        "engine/training/lessons.py",
        "max(1, row.start - row.mark), 0)",
        "max(1, row.start - row.mark))",
        ("engine/training/test_solving.py::test_a_value_is_found_as_a_plain_loop_finds_it[rome, 0.2, plain, gpt2]",),
    ),
    Fault(
        "a place paraphrased as a year",
        "data/paraphrases.py",
        "[relation for relation in _RELATIONS if relation.number in (None, number)]",
        "[*_RELATIONS]",
        ("data/test_paraphrases.py::test_a_relation_is_known_by_words_and_answer",),
    ),
    Fault(
        "paraphrases all of them bare",
        "engine/training/lessons.py",
        "before[i % len(before)] for i in",
        "before[0] for i in",
        (
            "engine/training/test_wordings.py::"
            "test_other_words_stand_behind_texts_in_turn_and_are_drawn_for_each_fact_alone",
        ),
    ),
    Fault(
        "nothing of a list stored for its next pass",
        "engine/model/kept.py",
        "if state.nbytes <= self._room:",
        "if state.nbytes < 0:",
        (
            "engine/training/test_together.py::"
            "test_what_the_unedited_model_makes_of_a_text_is_computed_once_while_there_is_room[start]",
        ),
    ),
    Fault(
        "dropout of a row that of another, where passes take some",
        LOOP,
        "within = [self._within[r] for r in rows]",
        "within = None",
        ("engine/training/test_passes.py::test_losses_and_gradients_are_those_of_one_pass[False, lora, gpt2]",),
    ),
    Fault(
        "mean over edits instead of sum",
        LOOP,
        "work.step(loss[left].sum())",
        "work.step(loss[left].mean())",
        (ORDER,),
    ),
    Fault(
        "mean over the batch's tokens instead of the edit's",
        LOOP,
        "of_row = self._batch.table(cost).sum(1) / self._batch.table.counts",
        "of_row = self._batch.table(cost).sum(1) / self._batch.table.counts.sum()",
        (ORDER,),
    ),
    Fault(
        "padding counted as answer",
        LOOP,
        "of_row = self._batch.table(cost).sum(1) / self._batch.table.counts",
        "of_row = self._batch.table(cost).mean(1)",
        (ORDER,),
    ),
    Fault(
        "facts of an edit weighted in float32",
        LOOP,
        "torch.tensor(weights, dtype=self._precision, device=device)",
        "torch.tensor(weights, dtype=torch.float32, device=device)",
        (PEFT,),
    ),
    Fault(
        "clipping across edits",
        LOOP,
        "for grad in grads]).sum(0).sqrt()",
        "for grad in grads]).sum().sqrt()",
        (ALONE,),
    ),
    Fault(
        "one step more after an edit is finished",
        LOOP,
        """\
            if over:
                ended.append(([work.edits[i] for i in over], work.patch.finished(over)))
            if left:
                work.step(loss[left].sum())
""",
        """\
            work.step(loss.sum())
            if over:
                ended.append(([work.edits[i] for i in over], work.patch.finished(over)))
""",
        (FINISHED,),
    ),
    Fault(
        "optimizer state of the wrong edits is kept",
        LOOP,
        "self.adam.take(torch.tensor(left, device=self.patch.seeds.device))",
        "self.adam.take(torch.arange(len(left), device=self.patch.seeds.device))",
        (STOPPING,),
    ),
    Fault(
        "replayed states of the wrong rows are kept",
        LOOP,
        "self._hidden = self._hidden[rows, :width]",
        "self._hidden = self._hidden[: len(rows), :width]",
        (STOPPING,),
    ),
    Fault(
        "predictions to hold of the wrong rows are kept",
        LOOP,
        "self._said = self._said[self._tensor(said)]",
        "self._said = self._said[: len(said)]",
        (f"{LEAVING}[gpt2, last, left1]",),
    ),
    Fault(
        "an anchor's prediction decides on stopping",
        LOOP,
        "worst = self._batch.table(nll.detach()).amax(1).masked_fill(self._anchor, 0.0)",
        "worst = self._batch.table(nll.detach()).amax(1)",
        ("engine/training/test_loop.py::test_predictions_that_are_to_stay_need_not_be_sure",),
    ),
    Fault(
        "stopping measured with dropout on",
        LOOP,
        "if dropped and self.method.hparams.sure is not None:",
        "if dropped and self.method.hparams.sure is None:",
        ("engine/training/test_loop.py::test_an_edit_stops_as_soon_as_it_is_sure_without_dropout[gpt2, sure]",),
    ),
    Fault(
        "KL the other way round",
        LOOP,
        "F.kl_div(log_q, self._said, ",
        "F.kl_div(self._said, log_q, ",
        (LOSS,),
    ),
    Fault(
        "stopping on the mean probability, not the lowest",
        LOOP,
        "worst = self._batch.table(nll.detach()).amax(1)",
        "worst = self._batch.table(nll.detach()).sum(1).div(self._batch.table.counts)",
        (FINISHED,),
    ),
    Fault(
        "NaN is not noticed",
        LOOP,
        "failed = ~loss.isfinite()",
        "failed = torch.zeros_like(loss, dtype=torch.bool)",
        (NAN,),
    ),
    Fault(
        "a failed edit keeps what training left of it",
        LOOP,
        "ended.append((lost, method.untrained([int(patch.seeds[e]) for e in lost])))",
        "pass",
        (NAN,),
    ),
    Fault(
        "a batch that did not fit is lost",
        BATCHES,
        'going on with %d", len(batch), size)\n            continue\n',
        'going on with %d", len(batch), size)\n',
        (f"{CONTRACT}test_out_of_memory_halves_the_batch[lora, gpt2]",),
    ),
    # Edits, files and merging
    Fault(
        "results in the order of training",
        BASE,
        "return Edits.concatenated([edits for _, edits in parts]).taken([at[i] for i in range(len(facts))])",
        "return Edits.concatenated([edits for _, edits in parts])",
        (ORDER,),
    ),
    Fault(
        "an edit's seed without its fact",
        "engine/method.py",
        "return seed_of(self.seed, *(fact.case_id for fact in facts))",
        "return seed_of(self.seed)",
        (f"{CONTRACT}test_the_seed_repeats_an_edit_and_tells_it_from_others[lora, gpt2]",),
    ),
    Fault(
        "dropout on when an edit is used",
        PATCH,
        "            .requires_grad_(False)\n            .eval()\n",
        "            .requires_grad_(False)\n            .train()\n",
        ("editors/test_lora.py::test_an_edit_trained_with_dropout_is_used_without[gpt2]",),
    ),
    Fault(
        "base weights changed by merging",
        BASE,
        "model = copy.deepcopy(self.editor.model)",
        "model = self.editor.model",
        (MERGED,),
    ),
    Fault(
        "Conv1D merged as Linear",
        PATCH,
        'turn = leaf == "weight" and transposed(model.get_submodule(module))',
        "turn = False",
        (MERGED,),
    ),
    Fault(
        "a worker that loads a large model is taken to hang",
        "evaluation/spreading.py",
        "pieces[i].least, _LONGER * self._loading, usual)",
        "pieces[i].least, usual)",
        ("evaluation/test_spreading.py::test_what_loading_the_model_takes_is_not_taken_for_hanging",),
    ),
    Fault(
        "a run of a sweep is taken to hang",
        "evaluation/spreading.py",
        "pieces[i].least, _LONGER * self._loading, usual)",
        "_LONGER * self._loading, usual)",
        ("evaluation/test_spreading.py::test_a_piece_has_the_time_that_it_may_take_in_any_case",),
    ),
    Fault(
        "a worker that hangs goes on unseen",
        "evaluation/spreading.py",
        "        self._busy.pop(future).end()",
        "        self._busy.pop(future)",
        ("evaluation/test_spreading.py::test_a_process_that_is_stopped_is_replaced",),
    ),
    Fault(
        "a site's output is not where it was",
        "engine/patches/branches.py",
        "torch.where(edited, new, y)).view(output.shape).to(output.device)",
        "torch.where(edited, new, y)).view(output.shape)",
        ("engine/model/test_split.py::test_every_method_edits_as_on_one_device[lora, llama]",),
    ),
    Fault(
        "a prefix is given to all layers where the edits are",
        "engine/patches/prefixes.py",
        "t.to(devices[layer], model.dtype)",
        "t.to(model.dtype)",
        ("engine/model/test_split.py::test_every_method_edits_as_on_one_device[prefix, llama]",),
    ),
    Fault(
        "weights that found no room are used",
        "engine/model/loading.py",
        "    _check_placed(name, model)\n",
        "",
        ("engine/model/test_split.py::test_weights_that_find_no_room_are_refused",),
    ),
    Fault(
        "a copy of each rounded weight is kept for the backward pass",
        "engine/model/quantized.py",
        "module.__class__ = Int8Linear",
        "pass",
        ("engine/model/test_quantized.py::test_no_copy_of_a_weight_is_kept_for_the_backward_pass[8bit]",),
    ),
    Fault(
        "an identity without the scales of rounded weights",
        "engine/model/quantized.py",
        'yield from ((name, weight.data), (f"{name}.absmax", weight.quant_state.absmax))',
        "yield name, weight.data",
        ("engine/model/test_quantized.py::test_identity_is_of_what_is_kept[4bit]",),
    ),
    Fault(
        "merged into rounded weights",
        BASE,
        "if kind := quantization_of(self.editor.model):",
        "if kind := None:",
        ("engine/model/test_quantized.py::test_nothing_is_merged_into_rounded_weights[8bit]",),
    ),
    Fault(
        "edits of another model are loaded",
        "engine/storage/manifest.py",
        "if is_identity_of(manifest.base_model, model):",
        "if manifest:",
        (f"{CONTRACT}test_edits_of_another_model_are_refused[lora, gpt2]",),
    ),
    Fault(
        "a loss that is no number is kept",
        "engine/outcome.py",
        "if self.loss is not None and not isfinite(self.loss):",
        "if self.loss is not None and not isfinite(1):",
        ("engine/test_outcome.py::test_a_loss_that_is_no_number_is_none[nan]",),
    ),
    Fault(
        "a model is known by its config alone",
        "engine/model/identity.py",
        "    _add_tensors(digest.update, sorted(model.named_parameters()))\n",
        "",
        ("engine/model/test_identity.py::test_a_model_is_known_by_every_weight_and_its_dtype",),
    ),
    Fault(
        "a default of transformers is another model",
        "engine/model/identity.py",
        "used = {key: value for key in known if (value := rope.get(key, config.get(key))) is not None}",
        "used = config",
        ("engine/model/test_identity.py::test_a_default_that_transformers_adds_changes_nothing[gpt2]",),
    ),
    Fault(
        "two processes write to one folder",
        "engine/files.py",
        "        lock.acquire()\n",
        "        pass\n",
        ("engine/test_files.py::test_a_folder_is_made_and_locked_while_it_is_written_to",),
    ),
    Fault(
        "a file has the rights of a temporary one",
        "engine/files.py",
        'unfinished.open("xb").close()',
        "unfinished.touch(0o600)",
        ("engine/test_files.py::test_files_have_the_rights_that_the_umask_gives",),
    ),
    # Seeds, dropout and rows
    Fault(
        "all edits from one generator",
        SEEDS,
        "self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]",
        "self._generators = [torch.Generator().manual_seed(seeds[0])] * len(seeds)",
        ("engine/test_seeds.py::test_initial_values_come_from_the_edits_own_seed[normal]",),
    ),
    Fault(
        "dropout masks by place in the batch",
        BRANCHES,
        "rows.within.to(torch.int32) * 0x3504F333",
        "torch.arange(len(rows), dtype=torch.int32) * 0x3504F333",
        (ALONE,),
    ),
    Fault(
        "the same dropout mask at every step",
        BRANCHES,
        " + mixed(self.steps.to(torch.int32))[rows.index]",
        "",
        ("editors/test_lora.py::test_dropout_masks_change_with_step_seed_and_row[gpt2]",),
    ),
    Fault(
        "dropout without scaling",
        SEEDS,
        "keep.view(x.shape).to(x.dtype).mul_(1 / (1 - p))",
        "keep.view(x.shape).to(x.dtype)",
        ("engine/test_seeds.py::test_dropout_keeps_its_share_scaled_and_without_pattern",),
    ),
    Fault(
        "unedited rows are edited",
        BRANCHES,
        "edited = rows.edited if rows.any_unedited else None",
        "edited = None",
        (f"{CONTRACT}test_rows_of_a_batch_are_each_computed_with_their_own_edit[lora, gpt2]",),
    ),
    Fault(
        "a hook stays behind",
        BRANCHES,
        "stack.callback(after(model.get_submodule(site.name), hook(i, branch)).remove)",
        "after(model.get_submodule(site.name), hook(i, branch))",
        (f"{CONTRACT}test_after_detaching_logits_are_bit_identical[lora, gpt2]",),
    ),
    Fault(
        "rows of an edit multiplied by its neighbour",
        ROWS,
        "part @ weight[edit].T for edit, part",
        "part @ weight[edit - 1].T for edit, part",
        ("engine/patches/test_rows.py::test_every_row_is_multiplied_by_its_own_edits_matrix[0, edits2]",),
    ),
    # The model left as it was
    Fault(
        "a replaced block stays behind",
        PASSES,
        "        del module.forward\n        if own is not None:\n            module.forward = own\n",
        "        pass\n",
        ("engine/model/test_passes.py::test_replaying_lower_blocks_is_a_full_pass[llama]",),
    ),
    Fault(
        "the model's own dropout stays on",
        PASSES,
        "            module.training = False\n",
        "            pass\n",
        (LEFT,),
    ),
    Fault(
        "training mode is not restored",
        PASSES,
        "            module.training = True\n",
        "            pass\n",
        (LEFT,),
    ),
    Fault(
        "gradient flags are not restored",
        PASSES,
        "            p.requires_grad = True\n",
        "            pass\n",
        (LEFT,),
    ),
    Fault(
        "a batch of other rows is accepted",
        PASSES,
        "if found != rows:",
        "if found != found:",
        ("editors/test_edits.py::test_a_list_of_one_names_one_row",),
    ),
    Fault(
        "edits on a model are not seen",
        "engine/model/hooks.py",
        "if any(isinstance(hook, EditHook) for hook in hooks):",
        "if not hooks and module is None:",
        ("editors/test_edits.py::test_nothing_begins_while_edits_are_attached[lora]",),
    ),
    Fault(
        "a store attaches beside others",
        "engine/model/hooks.py",
        "    check_free(model, doing)\n    with guarded(model, attached=True):\n        check_free(model, doing)",
        "    with guarded(model, attached=True):\n        pass",
        ("roof/test_store.py::test_a_store_is_not_used_beside_other_edits",),
    ),
    Fault(
        "half of a store's facts is judged by its own wording",
        "loredit/store/routing.py",
        "halves[0].worded(other).joined(halves[1].worded(one))",
        "halves[0].worded(one).joined(halves[1].worded(other))",
        ("roof/test_routing.py::test_words_that_stand_in_one_fact_alone_say_nothing_about_others",),
    ),
    Fault(
        "all strays that are allowed are taken",
        "loredit/store/calibration.py",
        "gain = went - strayed - 10",
        "gain = went - 10",
        ("roof/test_routing.py::test_strays_that_bring_no_rephrasing_are_left_though_they_are_allowed",),
    ),
    Fault(
        "other threads call a model with edits",
        "engine/model/sharing.py",
        "get_ident() != me:",
        "get_ident() == 0:",
        ("hostile/test_threads.py::test_another_threads_call_is_refused_while_edits_are_attached",),
    ),
    Fault(
        "a forked process waits for its parent's threads",
        "engine/model/sharing.py",
        "os.register_at_fork(after_in_child=_uses.clear)",
        "pass",
        ("hostile/test_threads.py::test_a_fork_has_none_of_the_threads_that_had_the_model",),
    ),
    Fault(
        "an index leads to pickles",
        "engine/model/sources.py",
        "if wrong := sorted(file for file in files if not _SHARD.fullmatch(file)):",
        "if wrong := sorted(file for file in files if not file):",
        ("hostile/test_models.py::test_a_pickle_that_an_index_names_is_not_read",),
    ),
    Fault(
        "terminals obey facts",
        "loredit/commands/common.py",
        "Segment(printable(segment.text), segment.style)",
        "segment",
        ("hostile/test_commands.py::test_a_terminal_obeys_nothing_of_a_fact",),
    ),
    Fault(
        "a cache that nobody asked for is given back",
        "engine/patches/prefixes.py",
        "        output.past_key_values = None\n",
        "",
        ("editors/test_prefix.py::test_generating_without_a_cache_gives_the_same_text[llama]",),
    ),
    # LoRA and Adam
    Fault(
        "alpha instead of alpha / rank",
        LORA,
        "    return alpha / rank\n",
        "    return alpha\n",
        ("editors/test_lora.py::test_the_change_of_a_weight_is_alpha_over_r_times_b_a[gpt2]",),
    ),
    Fault(
        "A starts twice as wide",
        LORA,
        "(h.rank, site.inputs), site.inputs**-0.5)",
        "(h.rank, site.inputs), 2 * site.inputs**-0.5)",
        (FRESH,),
    ),
    Fault(
        "B does not start at zero",
        LORA,
        "torch.zeros(len(seeds), site.outputs, h.rank)",
        "torch.ones(len(seeds), site.outputs, h.rank)",
        (FRESH,),
    ),
    Fault(
        "Adam without bias correction",
        OPTIMIZER,
        "size = (self.rates[name] / _one_minus_power(_BETA1, t)).view(per_edit)",
        "size = (self.rates[name] / torch.ones_like(t)).view(per_edit)",
        (ADAM,),
    ),
    Fault(
        "bias correction that cancels in float32",
        OPTIMIZER,
        "return -torch.expm1(t * math.log(beta))",
        "return 1 - beta**t",
        ("engine/patches/test_adam.py::test_rates_belong_to_parameters_by_name",),
    ),
    Fault(
        "epsilon within the root",
        OPTIMIZER,
        "div_(v.sqrt().mul_(root).add_(_EPSILON))",
        "div_((v * root.square() + _EPSILON).sqrt())",
        (ADAM,),
    ),
    # RoseLoRA
    Fault(
        "pruning one step late",
        ROSELORA,
        "share = [self.h.share(step) for step in steps.tolist()]",
        "share = [self.h.share(step - 1) for step in steps.tolist()]",
        (RULE,),
    ),
    Fault(
        "floor instead of ceil",
        ROSELORA,
        "math.ceil(round(s * n, 9))",
        "math.floor(round(s * n, 9))",
        (RULE,),
    ),
    Fault(
        "ceil without rounding first",
        ROSELORA,
        "math.ceil(round(s * n, 9))",
        "math.ceil(s * n)",
        (TIES,),
    ),
    Fault(
        "ties keep more than their share",
        ROSELORA,
        "return above | (tied & (tied.cumsum(-1) <= room))",
        "return above | tied",
        (TIES,),
    ),
    Fault(
        "sensitivity never taken before the step",
        ROSELORA,
        'if self.h.sensitivity == "before_step":',
        'if self.h.sensitivity == "never":',
        (RULE,),
    ),
    Fault(
        "sensitivity without smoothing",
        ROSELORA,
        "return now.add_(before, alpha=self.h.beta) if before.numel() else now",
        "return now",
        (RULE,),
    ),
    Fault(
        "sensitivity of the gradient alone",
        ROSELORA,
        "now = (w * w.grad).abs_()",
        "now = w.grad.abs()",
        (RULE,),
    ),
    Fault(
        "rows of B pruned instead of columns",
        ROSELORA,
        "self.b.mul_(_largest(self.b_sensitivity.mT, share).mT)",
        "self.b.mul_(_largest(self.b_sensitivity, share))",
        (RULE,),
    ),
    Fault(
        "top-k across edits",
        ROSELORA,
        "part.topk(k, sorted=False).values.amin(-1, keepdim=True) for part",
        "part.topk(k, sorted=False).values.amin(-1, keepdim=True).amin(0, keepdim=True).expand(len(part), -1, 1)"
        " for part",
        (f"{CONTRACT}test_order_and_chunks_change_nothing[roselora, gpt2]",),
    ),
    Fault(
        "an edit stops before it is pruned",
        ROSELORA,
        "return steps >= round(self.hparams.t_f * self.hparams.steps)",
        "return steps >= 0",
        ("editors/test_roselora.py::test_an_edit_stops_early_only_after_the_last_pruning[gpt2]",),
    ),
    Fault(
        "clamping before pruning is on",
        ROSELORA,
        "if min(share) == 1:",
        "if min(share) == 1 and self.h.max_abs is None:",
        ("editors/test_roselora.py::test_an_edit_is_what_the_papers_rule_makes[gpt2, changes2]",),
    ),
    Fault(
        "sensitivity taken before and after the step",
        ROSELORA,
        'if self.h.sensitivity == "after_step":',
        "if self.h.sensitivity:",
        (RULE,),
    ),
    # Encoding, sites and generation
    Fault(
        "the answer begins behind the prompt's tokens",
        ENCODING,
        "start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False)))",
        "start = len(alone)",
        ("engine/model/test_encoding.py::test_an_answer_begins_with_the_token_it_shares_with_the_prompt",),
    ),
    Fault(
        "padding known by its token id",
        ENCODING,
        "mask[row, span] = 1",
        "mask[row, span] = torch.tensor(sequence).ne(0).long()",
        ("engine/model/test_encoding.py::test_padding_is_known_by_length",),
    ),
    Fault(
        "predictions one token late",
        ENCODING,
        "(r, row.start - 1 + k)",
        "(r, row.start + k)",
        ("engine/model/test_encoding.py::test_a_batch_predicts_each_wanted_token_from_the_one_before",),
    ),
    Fault(
        "positions count the left padding",
        GENERATION,
        "self._run([*rows], ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)",
        "self._run([*rows], ids, mask, torch.arange(ids.shape[1]).expand_as(ids), cache)",
        ("engine/model/test_generation.py::test_generation_with_left_padding_is_greedy_decoding_alone[gpt2]",),
    ),
    Fault(
        "edits stay with the rows that left",
        GENERATION,
        "self._attached.enter_context(self._attach(rows))",
        "self._attached.enter_context(self._attach(range(len(rows))))",
        (
            "engine/model/test_generation.py::"
            "test_rows_that_are_finished_leave_with_their_edits_and_change_nothing[gpt2]",
        ),
    ),
    Fault(
        "a text that joins is laid beside the others' beginnings",
        GENERATION,
        "else [filler, text], dim=2)",
        "else [text, filler], dim=2)",
        (f"{JOINED}[llama, lora]",),
    ),
    Fault(
        "a prefix of those that join is moved",
        GENERATION,
        "torch.cat([prefix, filler, text] if",
        "torch.cat([filler, prefix, text] if",
        (f"{JOINED}[llama, prefix]",),
    ),
    Fault(
        "a model is lent with its hooks",
        "engine/model/hooks.py",
        "        table.clear()\n",
        "        pass\n",
        (
            "engine/model/test_decoder.py::test_a_model_can_be_lent_in_the_middle",
            "roof/test_lock.py::test_those_who_wait_come_in_order_and_long_work_gives_way_without_its_hooks",
        ),
    ),
    Fault(
        "prompts are looked for with the edits of others",
        "loredit/server/batching.py",
        "with set_aside(self.session.model):",
        "with suppress(RuntimeError):",
        (f"{OPENAI}test_many_clients_at_once_are_each_answered_with_their_own_edit",),
    ),
    Fault(
        "what may be the beginning of a stop is sent",
        "loredit/server/batching.py",
        "len(self._text) - _held(self._text[self._sent :], self.wanted.stop)",
        "len(self._text)",
        (f"{OPENAI}test_a_text_ends_before_a_stop_though_it_comes_in_two_tokens",),
    ),
    Fault(
        "any name leads here",
        "loredit/server/app.py",
        "if self._host not in _ANY and",
        "if self._host in _ANY and",
        (f"{OPENAI}test_pages_of_others_and_names_that_were_made_to_lead_here_are_refused",),
    ),
    Fault(
        "a job that was interrupted is not taken up again",
        "loredit/server/jobs.py",
        'return self.state.name == "waiting"',
        'return self.state.name == "waiting" and self.begun > 0',
        ("roof/server/test_page.py::test_a_restart_in_the_middle_loses_nothing",),
    ),
    Fault(
        "a text's random numbers by place in the batch",
        GENERATION,
        "self._draws[list(rows), step]",
        "self._draws[: len(rows), step]",
        ("engine/model/test_generation.py::test_rows_that_are_finished_leave_with_their_random_numbers[gpt2]",),
    ),
    Fault(
        "sampling among six",
        SCORING,
        "return TopK(5, [drawn(request)",
        "return TopK(6, [drawn(request)",
        (TEXTS,),
    ),
    Fault(
        "texts grow past the context",
        GENERATION,
        "filled = len(prompts[row]) + len(out[row]) >= context",
        "filled = len(prompts[row]) + len(out[row]) >= 2 * context",
        ("evaluation/test_scoring.py::test_a_text_ends_where_the_context_is_full[lora, llama]",),
    ),
    Fault(
        "one site fault at a time",
        SITES,
        'raise SiteError("; ".join(faults))',
        "raise SiteError(faults[0])",
        ("engine/model/test_sites.py::test_all_faults_of_sites_and_layers_are_reported_together",),
    ),
    Fault(
        "overlapping sites twice",
        SITES,
        "for layer in chosen for ending, role in role_of.items()]",
        "for layer in chosen for role in roles for ending in known[role]]",
        ("engine/model/test_sites.py::test_sites_that_overlap_are_there_once",),
    ),
    Fault(
        "a quantized map is taken for a plain one",
        SITES,
        '    raise SiteError(\n        f"a {type(module).__name__} is no linear',
        '    return False\n    raise SiteError(\n        f"a {type(module).__name__} is no linear',
        ("editors/test_edits.py::test_maps_that_are_no_plain_matrices_are_refused[lora]",),
    ),
    # Scoring
    Fault(
        "the unedited model scored under the edit",
        SCORING,
        "with recorded(model, first) as hidden:",
        "with edits.on(owners), recorded(model, first) as hidden:",
        (PROBES,),
    ),
    Fault(
        "locality against the truth",
        SCORING,
        "zip(first[0].argmax, first[1].argmax, strict=True)",
        "zip(self.rows[probe.prompt, probe.answers[0]].wanted, first[1].argmax, strict=True)",
        (SAME,),
    ),
    Fault(
        "mean log probability instead of the sum",
        SCORING,
        "sums = batch.table(log_prob).sum(1).tolist()",
        "sums = batch.table(log_prob).mean(1).tolist()",
        ("evaluation/test_scoring.py::test_facts_of_one_edit_are_each_scored_under_it[gpt2]",),
    ),
    Fault(
        "all rows scored under the first edit",
        SCORING,
        "with edits.on(owners), replayed(",
        "with edits.on([owners[0]] * len(owners)), replayed(",
        (PROBES,),
    ),
    Fault(
        "replayed states of the wrong rows in scoring",
        SCORING,
        "replayed(model, first, hidden[0])",
        "replayed(model, first, hidden[0].flip(0))",
        (SAME,),
    ),
    Fault(
        "an answer cut at its own full stop",
        SCORING,
        '".".join(line.split(".")[: full_stops + 1])',
        '".".join(line.split(".")[:1])',
        ("evaluation/test_scoring.py::test_an_answer_ends_at_its_natural_stop",),
    ),
    Fault(
        "one seed for all texts",
        SCORING,
        'seed_of("fluency", seed, request.job.fact.case_id)',
        'seed_of("fluency", seed)',
        (TEXTS,),
    ),
    Fault(
        "outputs that are not finite are scored",
        SCORING,
        "if not all(math.isfinite(p.log_prob) for both in self.passes.values() for p in both):",
        "if not all(p.argmax for both in self.passes.values() for p in both):",
        ("evaluation/test_scoring.py::test_numbers_that_are_not_finite_fail_their_fact_alone[gpt2]",),
    ),
)

CAUGHT, PASSED, LATE, STALE, UNTESTED = "caught", "NOT CAUGHT", "TIMED OUT", "NOT PLANTED", "NO SUCH TEST"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression; of faults whose name, file or tests have it")
    parser.add_argument("--jobs", type=int, default=1, help="faults at once, each in a copy of its own")
    parser.add_argument("--list", action="store_true", help="name the faults and whether they can be planted")
    options = parser.parse_args(arguments)
    wanted = re.compile(options.only, re.IGNORECASE)
    chosen = [f for f in FAULTS if wanted.search("\n".join((f.name, f.file, *f.tests)))]
    if not chosen:
        parser.error(f"no fault has {options.only!r} in its name, file or tests")
    if options.list:
        return _listed(chosen)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        copies: Queue[Path] = Queue()
        for job in range(options.jobs):
            copies.put(Path(shutil.copytree(ROOT, Path(temporary) / str(job), symlinks=True, ignore=LEFT_OUT)))
        known = _collected(Path(temporary) / "0", {test.partition("::")[0] for f in chosen for test in f.tests})
        sound = {test for f in chosen for wanted_ids in f.tests for test in _matching(wanted_ids, known)}
        done = _pytest(Path(temporary) / "0", *sorted(sound))
        if done.returncode:  # a test that fails in any case would seem to notice every fault
            _say(done.stdout)
            _say("the tests beside the faults have to pass before faults are planted")
            return 1

        def tried(fault: Fault) -> tuple[Fault, str, float]:
            copy = copies.get()
            begun = time.perf_counter()
            try:
                result = _tried(fault, copy, known)
            finally:
                copies.put(copy)
            _say(f"{result:12} {time.perf_counter() - begun:6.1f} s  {fault.name}")
            return fault, result, time.perf_counter() - begun

        with ThreadPoolExecutor(options.jobs) as pool:
            results = [*pool.map(tried, chosen)]
    bad = [(fault, result) for fault, result, _ in results if result != CAUGHT]
    _say(f"\n{len(results) - len(bad)} of {len(results)} faults caught, {sum(s for *_, s in results):.0f} s of tests")
    for fault, result in bad:
        _say(f"  {result}: {fault.name} ({fault.file}): {', '.join(fault.tests)}")
    return 1 if bad else 0


def _listed(faults: Sequence[Fault]) -> int:
    stale = 0
    for fault in faults:
        plantable = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
        stale += not plantable
        _say(f"{'' if plantable else STALE:12} {fault.file:28} {fault.name}")
    _say(f"\n{len(faults)} faults, {stale} of which cannot be planted")
    return 1 if stale else 0


def _collected(copy: Path, files: set[str]) -> list[str]:
    """The ids of all tests in these files."""
    done = _pytest(copy, "--collect-only", *(f"tests/{file}" for file in sorted(files)))
    ids = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    if done.returncode:
        raise SystemExit(f"the tests cannot be collected:\n{done.stdout}{done.stderr}")
    return ids


def _tried(fault: Fault, copy: Path, known: Sequence[str]) -> str:
    path = copy / fault.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(fault.old) != 1:
        return STALE
    found = [_matching(test, known) for test in fault.tests]
    if not all(found):
        return UNTESTED
    path.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
    try:
        done = _pytest(copy, "-x", *(test for tests in found for test in tests))
    finally:
        path.write_text(whole, encoding="utf-8")
    return {0: PASSED, 1: CAUGHT, 124: LATE}.get(done.returncode, UNTESTED)


def _matching(test: str, known: Sequence[str]) -> list[str]:
    """The ids that a fault's test means: those with all of its parameters."""
    name, _, rest = test.partition("[")
    wanted = set(rest.removesuffix("]").split(", ")) if rest else set()
    ids = (known_id.partition("[") for known_id in known)
    return [
        f"{head}{bracket}{parameters}"
        for head, bracket, parameters in ids
        if head == f"tests/{name}" and wanted <= set(parameters.removesuffix("]").split("-"))
    ]


def _pytest(copy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Without bytecode: a fault that is planted and taken out within a second leaves the file's time and size the same.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    try:
        return subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, str(error.stdout), str(error.stderr))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
