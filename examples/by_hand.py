"""The five steps by hand, on any torch network and any loss, ending in what they promise."""

import torch

import semu_diffusion as semu

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)).requires_grad_(False)
kept = torch.randn(256, 8) @ torch.randn(8, 16)  # what must stay lives in half of the input space
forget = torch.randn(256, 16)
wanted = torch.zeros(256, 4)  # what the network is to say instead
before = net(kept), net(forget)


def loss(step: int) -> dict[str, torch.Tensor]:
    return {"forget": (net(forget) - wanted).square().mean()}


layers = semu.select_layers(net)
gradients = semu.collect_gradients(net, layers, range(1), lambda step: loss(step)["forget"])
moments = semu.collect_moments(layers, [kept], net)
subspaces = {
    name: semu.layer_subspace(
        gradients[name], layer.weight, explained_variance=0.99, protected=moments[name].protected_basis(0.999)
    )
    for name, layer in layers.items()
}
patch = semu.run_to_end(semu.train_patch(semu.PatchedLayers(net, subspaces), loss, steps=200, learning_rate=3e-2))

patch.apply(net)
change = [(net(x) - y).square().mean() / y.square().mean() for x, y in zip((kept, forget), before, strict=True)]
assert change[1] > 0.1, "what is forgotten is answered differently"
assert change[0] < 0.02 * change[1], "what is kept is not"
patch.remove(net)
assert torch.equal(net(forget), before[1]), "and the patch comes off to the last bit"
print(f"changed: forgotten {change[1]:.3f}, kept {change[0]:.5f}; {patch.trained_parameters} parameters trained")
