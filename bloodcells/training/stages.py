from bloodcells.models import head_parameters


def trainable(model, unfreeze, *, train_batch_norm):
    if unfreeze == "head":
        return tuple(head_parameters(model))
    return tuple(n for n, p in model.named_parameters() if train_batch_norm or "bn" not in n)


def apply_stage(model, names, *, train_batch_norm):
    for n, p in model.named_parameters():
        p.requires_grad_(n in names)


def freeze_batch_norm(model):
    from torch import nn

    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
