"""Run by another tool's interpreter: what its own readers find in our files, as JSON.

``peer_readers.py TOOL FOLDER SLIDE OWN``: reads slide ``a`` of FOLDER, and writes what the tool
itself would write of SLIDE into OWN.
"""

import json
import sys
import warnings
from pathlib import Path


def slide2vec(folder, slide, own):
    import numpy as np
    from hs2p.artifacts import load_tiling_result, save_tiling_result
    from hs2p.tiling.tar import extract_tiles_to_tar
    from slide2vec.artifacts import load_array, write_tile_embeddings
    from slide2vec.data.tile_store import TarTileReader
    from slide2vec.runtime.persistence import load_tile_artifact

    stem = folder / "tiles/a.coordinates"
    result = load_tiling_result(Path(f"{stem}.npz"), Path(f"{stem}.meta.json"))
    artifact = load_tile_artifact(
        "a", output_dir=folder / "handcrafted", output_format="npz", annotation=None
    )
    features = load_array(artifact.path)
    save_tiling_result(result, own)
    tar, _ = extract_tiles_to_tar(result, own)
    archived = TarTileReader(tar, 128).read_batch(np.arange(len(result.x)))
    np.save(own / "archived.npy", archived.permute(0, 2, 3, 1).numpy())
    meta = {"encoder_name": "theirs"}
    write_tile_embeddings("a", features, output_dir=own, output_format="pt", metadata=meta)
    points = [[int(x), int(y)] for x, y in zip(result.x, result.y, strict=True)]
    found = {"side": int(result.tiles.tile_size_lv0), "read": int(result.tiles.read_tile_size_px)}
    return {**found, "points": points, "features": features.tolist()}


def lazyslide(folder, slide, own):
    import lazyslide as zs
    from wsidata import open_wsi
    from wsidata.io import add_features

    store = open_wsi(slide, store=str(folder / "a.zarr"))
    spec = store.tile_spec("tiles")
    first = next(iter(store.iter.tile_images("tiles")))
    features = store.fetch.features_anndata("handcrafted").X
    corners = store["tiles"].bounds[["minx", "miny"]].to_numpy().astype(int).tolist()
    theirs = open_wsi(slide, store=str(own / "a.zarr"))
    zs.pp.find_tissues(theirs)
    zs.pp.tile_tissues(theirs, 128, mpp=0.5)
    count = len(theirs["tiles"])
    rows = features[:1].repeat(count, 0)
    add_features(theirs, "theirs_tiles", "tiles", rows)
    theirs.write()
    return {
        "side": spec.base_width,
        "read": spec.ops_width,
        "step": spec.stride_width,
        "image": list(first.image.shape),
        "points": corners,
        "features": features.tolist(),
        "theirs": theirs["tiles"].bounds[["minx", "miny"]].to_numpy().astype(int).tolist(),
    }


def lazyslide_slides(folder, slide, own):
    import lazyslide as zs
    import matplotlib as mpl
    import pandas as pd
    from wsidata import agg_wsi, open_wsi

    mpl.use("Agg")
    store = open_wsi(slide, store=str(folder / "a.zarr"))
    zs.tl.feature_aggregation(store, "handcrafted")
    zs.pl.tissue(store)
    zs.pl.tiles(store, feature_key="handcrafted", color=["0"])
    slides = pd.DataFrame({"slide": [str(slide)], "store": [str(folder / "a.zarr")]})
    options = {"wsi_col": "slide", "store_col": "store"}
    ours = agg_wsi(slides, "handcrafted", agg_key="agg_mean-handcrafted", **options)
    return {
        "ours": ours.X.tolist(),
        "theirs": store["handcrafted_tiles"].uns["agg_ops"]["agg_slide"]["features"].tolist(),
        "tissues": store.fetch.n_tissue("tissues"),
        "contours": [int(each.tissue_id) for each in store.iter.tissue_contours("tissues")],
        "tissue_ids": sorted({*store["tiles"]["tissue_id"].tolist()}),
    }


def atlaspatch(folder, slide, own):
    import h5py
    import numpy as np
    from atlas_patch.services.storage import H5PatchWriter
    from atlas_patch.utils.feature_h5 import read_patch_artifact_summary
    from atlas_patch.utils.features import get_existing_features

    (own / "patches").mkdir()
    writer = H5PatchWriter(
        chunk_rows=8,
        patch_size=128,
        patch_size_level0=256,
        level0_mag=40,
        target_mag=20,
        level0_wh=(1024, 768),
        overlap=0,
        slide_stem="a",
        wsi_path=str(slide),
        extra_file_attrs={"num_patches": 4},
    )
    theirs = [(256, 256), (0, 0), (256, 0), (256, 256)]
    rows = [(x, y, 256, 256, 0, np.full((2, 2), x + y)) for x, y in theirs]
    writer.write_coords(own / "patches/a.h5", rows, batch=3)
    writer.append_features(
        output_path=own / "patches/a.h5",
        entries=rows,
        feature_name="theirs",
        feature_fn=lambda batch: np.array([[tile.mean()] * 67 for tile in batch], np.float32),
        feature_attrs={},
        feature_batch=3,
    )
    path = folder / "patches/a.h5"
    summary = read_patch_artifact_summary(path)
    names = get_existing_features(path, expected_total=summary.num_patches)
    with h5py.File(path) as file:
        rows, features = file["coords"][:], file["features/handcrafted"][:]
    return {
        "side": summary.patch_size_level0,
        "read": int(rows[0, 2]),
        "names": sorted(names),
        "theirs": [[0, 0], [256, 0], [256, 256]],
        "points": rows[:, :2].tolist(),
        "features": features.tolist(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    tool, *paths = sys.argv[1:]
    print("\n" + json.dumps(globals()[tool](*map(Path, paths))))
