"""Backbones and image sizes: built for the trial's size where timm can, else refused with sizes that work."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

from flowers_bench import UsageError
from flowers_bench.contract.host import discover
from flowers_bench.models.backbones import Backbone, check_image_size
from flowers_bench.models.network import size_argument
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request

#: A small member of each of timm's families (its modules), and of some that differ inside one. DeepSeek's has half a
#: billion parameters, and is left out.
FAMILIES = (  # noqa: SIM905
    "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext cpubone_nano "
    "crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 "
    "dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1 "
    "efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 "
    "flexivit_small focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 gmlp_ti16_224 hardcorenas_b halonet_h1 "
    "hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_v3 lcnetv2_small "
    "levit_128s lowformer_b0 test_mambaout test_coatnet maxvit_rmlp_pico_rw_256 poolformerv2_s12 mixer_s32_224 resmlp_12_224 "
    "lcnet_035 mobilevit_xxs mvitv2_tiny nest_tiny nextvit_small test_nfnet pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 "
    "repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 "
    "sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 "
    "swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11 "
    "visformer_tiny test_vit vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 vitamin_small_224 volo_d1_224 "
    "ese_vovnet19b_slim_dw legacy_xception xception41 xcit_nano_12_p16_224 "
    "test_byobnet inception_resnet_v2 inception_v4 mobilenetv5_base naflexvit_base_patch16_gap nasnetalarge pnasnet5large "
    "qwen3_vit_88m samvit_base_patch16_224"
).split()
SIZES = (64, 96, 224)


def family(name: str) -> str:
    return str(timm.models.model_entrypoint(name).__module__.rpartition(".")[2])


def outcome(name: str, size: int) -> str:
    """`runs`, `runs with img_size`, or `refused: 128, 160`, with the sizes that are offered instead."""
    try:
        check_image_size(name, size)
    except UsageError as error:
        return "refused: " + ", ".join(re.findall(r"--set image_size=(\d+)", str(error)))
    return "runs with img_size" if size_argument(name, size) else "runs"


def run_for_real(name: str, size: int) -> None:
    model = Backbone(name, Weights(), 5, size).create().eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_family_runs_or_is_refused_with_a_size_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    """What is said without values is true with values; the counts are printed."""
    counts: Counter[str] = Counter()
    known = [name for name in FAMILIES if timm.is_model(name)]
    with capsys.disabled():
        print(
            "\nnot tried:", sorted({family(n) for n in timm.list_models()} - {family(n) for n in known}) or "no family"
        )
    for name in FAMILIES:
        if not timm.is_model(name):
            counts["not in this timm"] += 1
            continue
        for size in SIZES:
            found = outcome(name, size)
            counts[found.partition(":")[0]] += 1
            if found.startswith("runs"):
                run_for_real(name, size)
            else:
                offered = [int(text) for text in re.findall(r"\d+", found)]
                assert offered or name.startswith("gemma"), name
                for other in offered:
                    run_for_real(name, other)
            with capsys.disabled():
                print(f"{name} at {size}: {found}")
    with capsys.disabled():
        print(dict(counts))
    assert counts["runs"] > counts["runs with img_size"] > 50
    assert counts["refused"] < 30


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_coatnet", "gmlp_ti16_224", "pit_ti_224"])
def test_a_model_built_for_one_size_is_built_for_the_trials(name: str) -> None:
    assert size_argument(name, 64) == {"img_size": 64}
    run_for_real(name, 64)


@pytest.mark.parametrize("name", ["test_resnet", "crossvit_tiny_240", "efficientvit_m0"])
def test_a_model_that_runs_at_any_size_is_as_timm_builds_it(name: str) -> None:
    assert size_argument(name, 64) == {}
    run_for_real(name, 64)


@pytest.mark.parametrize(
    ("name", "size", "works"),
    [("test_vit", 40, [32, 48]), ("efficientformer_l1", 96, [224]), ("inception_v3", 64, [80])],
)
def test_a_size_that_a_model_cannot_take_is_refused_with_the_nearest(name: str, size: int, works: list[int]) -> None:
    with pytest.raises(UsageError, match=f"image_size={size}") as refused:
        check_image_size(name, size)
    offered = [int(text) for text in re.findall(r"--set image_size=(\d+)", str(refused.value))]
    assert offered == works
    for other in offered:
        check_image_size(name, other)


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="gives no scores of classes"):
        check_image_size("gemma4_vit_167m_enc", 96)


def test_planning_refuses_the_size_before_the_data_are_read(tmp_path: Path) -> None:
    request = Request(
        ["transfer/scratch"], "petals", tmp_path, seeds=1, backbone="efficientformer_l1", settings={"image_size": "96"}
    )
    with pytest.raises(UsageError, match="--set image_size=224"):
        plan(discover([]), request, [])
    assert not list(tmp_path.iterdir())


def test_a_model_with_several_classifiers_is_refused_and_not_trained() -> None:
    with pytest.raises(UsageError, match="several classifiers"):
        Classifier(timm.create_model("levit_128s", num_classes=3))


def test_a_classifier_that_is_a_convolution_classifies() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnetv2_18", num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(Classifier(model)(images).logits, model(images), atol=1e-6)
