"""A language model with an LSTM whose hidden state is carried from batch to batch, clipped."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from tightwire.bench.scripts.replicas import Replicas

WORDS = 20
State = tuple[Tensor, Tensor]


class WordModel(nn.Module):
    """Embeds, recurs, decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(WORDS, 12), nn.LSTM(12, 16, num_layers=2)
        self.decode = nn.Linear(16, WORDS)

    def forward(self, words: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Returns logits and the hidden state."""
        out, state = self.lstm(self.embed(words), state)
        return self.decode(out), state


def lstm(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains it."""
    model = WordModel()
    optimizer = SGD(model.parameters(), lr=0.5)
    state: State | None = None
    with replicas.of(model, optimizer) as net:
        for words in replicas.tokens(WORDS, 9, 4):
            state = state and (state[0].detach(), state[1].detach())
            optimizer.zero_grad()
            logits, state = net(words[:-1], state)
            loss = cross_entropy(logits.reshape(-1, WORDS), words[1:].reshape(-1))
            loss.backward()
            replicas.wait()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return model, loss
