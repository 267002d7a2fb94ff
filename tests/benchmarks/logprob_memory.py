"""Peak memory of response log-probs and their gradient at a vocabulary of 151,936 tokens.

PYTHONPATH=. python tests/benchmarks/logprob_memory.py

Each measurement is a fresh process: what memory an earlier one took would hide the peak of the
next. The model is a Qwen2 of width 64, so that the logits are what counts; all positions are
scored, which is the worst case for ours.
"""

import argparse
import resource
import statistics
import subprocess
import sys

VOCABULARY, ROWS, TOKENS = 151_936, 8, 128


def log_probs_of(method: str, model, ids, labels):
    """(B, T), by one of the methods."""
    if method == "ours":
        from helpers.logprobs import response_log_probs

        return response_log_probs(model, ids, labels)["log_probs"]
    logits = model(input_ids=ids, use_cache=False).logits
    if method == "TRL":
        from trl.trainer.utils import selective_log_softmax

        return selective_log_softmax(logits, labels)
    return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def measure(method: str) -> None:
    """Print the growth of the peak resident memory, in MB, and the sum of the log-probs."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen2Config(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=True)
    model = Qwen2ForCausalLM(config)
    ids = torch.randint(0, VOCABULARY, (ROWS, TOKENS + 1))
    # Imports, kernels and the gradient of the embedding are there before the start is noted.
    log_probs_of(method, model, ids[:1, :2], ids[:1, 1:3]).sum().backward()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = log_probs_of(method, model, ids[:, :-1], ids[:, 1:]).sum()
    total.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((peak - start) / 1024, total.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", help="one measurement in this process")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    found = {}
    for method in ("full log-softmax", "TRL", "ours"):
        command = [sys.executable, __file__, "--measure", method]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                for _ in range(args.runs)]
        found[method] = statistics.median(float(peak) for peak, _ in runs)
        print(f"{method}: {found[method]:,.0f} MB (sum of log-probs {float(runs[0][1]):.1f})")
    print(f"ours takes {found['ours'] / found['TRL']:.2f} of what TRL's default path takes")


if __name__ == "__main__":
    main()
