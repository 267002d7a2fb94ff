"""A training is stopped in mid-run in JupyterLab, by its button and by the kernel's interrupt."""

import nbformat
import pytest
from playwright.sync_api import expect

from tests.workbook.browser import choose, copy_course, errors, find_cell, lab_page, run_cell, save

pytestmark = pytest.mark.browser

TRAINING = """
from helpers.models import load_model
from helpers.plotting_rl import metric_grid
from helpers.training import GRPOSettings, train_grpo
from workbook.lesson import live_monitor

base, start = "../workbook/assets/base", "../workbook/assets/adapters/sft_short"
model, tokenizer = load_model(base, adapter=start, device="cpu")
settings = GRPOSettings(max_steps=5000, prompts_per_step=2, samples_per_prompt=2,
                        max_new_tokens=4, progress=False)
monitor = live_monitor("reward_mean", "length", draw=metric_grid, stop_button=True)

def brevity(response, gold):
    return {"format_reward": 0.0, "answer_reward": 0.0, "reward": -float(len(response))}

run = train_grpo(model, [{"prompt": "3 + 4 =", "gold_answer": "7"}] * 4, settings,
                 tokenizer=tokenizer, reward_fn=brevity, callbacks=[monitor])
"""
AFTER = """
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

before, learnt = load_file(f"{start}/adapter_model.safetensors"), get_peft_model_state_dict(model)
moved = max(float(abs(learnt[name] - tensor).max()) for name, tensor in before.items())
print(run.summary["status"], run.summary["steps"] == len(run.metrics) > 0, moved > 1e-6)
"""


@pytest.mark.parametrize("way", ["the button", "the kernel's interrupt"])
def test_a_run_that_is_stopped_ends_after_its_step_and_goes_on_to_the_next_cell(tmp_path, way):
    course = copy_course(tmp_path / "course")
    (course / "work").mkdir()
    notebook = course / "work" / "05_stop.ipynb"
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (TRAINING, AFTER)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notebook)
    with lab_page(course, notebook.name) as page:
        cell = find_cell(page, "train_grpo(")
        cell.locator(".jp-InputPrompt").click()
        page.keyboard.press("Control+Enter")
        button = cell.get_by_role("button", name="Stop after this step")
        expect(button).to_be_visible(timeout=120_000)
        expect(cell.locator(".jp-OutputArea-output img")).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "running.png")
        if way == "the button":
            button.click()
        else:
            choose(page, "Kernel", "Interrupt Kernel")
        expect(cell.get_by_role("button", name="Interrupted")).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "stopped.png")
        assert "interrupted True True" in run_cell(find_cell(page, "print(run.summary"))
        save(page)
    assert errors(notebook) == []
