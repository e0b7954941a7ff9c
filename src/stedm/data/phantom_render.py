"""How the phantom's tissue is drawn: stains in optical density (Beer-Lambert), cells, fibres, and the scanner."""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage, spatial

BACKGROUND, STROMA, EPITHELIUM = 0, 1, 2


@dataclass(frozen=True)
class PatientStyle:
    """Everything that makes one patient's tissue look different from another's. Sizes are in pixels."""

    group: str
    """Staining group: `he`, `ihc0`, `ihc1`, `ihc2` or `ihc3`."""
    stains: np.ndarray
    """Optical density per RGB channel (3, 3) of, row by row, haematoxylin, eosin (IHC: faint background) and DAB."""
    white: np.ndarray
    """Colour of empty glass (3,), 0 to 1."""
    colour_matrix: np.ndarray
    """Scanner's channel mixing (3, 3)."""
    gamma: float
    """Scanner's tone curve."""
    blur_px: float
    """Defocus, standard deviation."""
    noise: float
    """Sensor noise, standard deviation, 0 to 1."""
    epithelium: str
    """Kind of epithelium, e.g. `mucinous`."""
    cytoplasm: tuple[float, float]
    """Concentration of haematoxylin and eosin in the cytoplasm."""
    granularity: float
    """Contrast of the cytoplasm's fine texture."""
    vacuoles: float
    """Share of the cytoplasm that is vacuoles or mucin, 0 to 1."""
    membrane: float
    """Concentration of stain in the cell membranes."""
    membrane_px: float
    """Thickness of the membranes."""
    membrane_share: float
    """Share of the membranes that are stained: completeness, 0 to 1."""
    polarity: float
    """0: nuclei anywhere in the cell layer; 1: none in the half towards the lumen."""
    nucleus_px: float
    """Length of an epithelial nucleus."""
    elongation: float
    """Length over width of an epithelial nucleus."""
    crowding: float
    """Distance between nuclei, in nucleus lengths."""
    pleomorphism: float
    """Variation of the nuclei's sizes and outlines: 0.1 even, 0.4 wild."""
    chromatin: tuple[float, float]
    """Concentration of haematoxylin in the nuclei; 0 (dense) to 1 (vesicular: pale centre, dark rim)."""
    stroma: str
    """Kind of stroma, e.g. `collagen`."""
    matrix: tuple[float, float]
    """Concentration of haematoxylin and eosin between the stroma's cells."""
    fibres: tuple[float, float, float, float]
    """Fibres: contrast, width, length, waviness (all but the contrast in pixels)."""
    cleft: float
    """How far the stroma has shrunk from the epithelium, 0 (not at all) to 1 (a white gap)."""
    fibroblasts: float
    """Spindle cells per 100 pixels of stroma."""
    lymphocytes: float
    """Round cells per 100 pixels of stroma."""
    secretion: tuple[float, float]
    """Concentration of haematoxylin and eosin in the lumina."""


def smooth_noise(shape: tuple[int, int], sigma_px: float | tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """White noise through a Gaussian filter, mean 0 and standard deviation 1. float32 `shape`, periodic."""
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    sigma_y, sigma_x = np.broadcast_to(sigma_px, 2)
    for axis, frequency, sigma in ((0, fft.fftfreq(shape[0]), sigma_y), (1, fft.rfftfreq(shape[1]), sigma_x)):
        gain = np.exp(-2 * (np.pi * sigma * frequency) ** 2).astype(np.float32)
        spectrum *= np.expand_dims(gain, 1 - axis)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


def _at(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (K,) of `field` (H, W) at `points` (K, 2), given as y and x."""
    return field[points[:, 0].astype(int), points[:, 1].astype(int)]


def _direction(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Angle (K,) of the gradient of `field` (H, W) at `points` (K, 2)."""
    gradient_y, gradient_x = np.gradient(ndimage.gaussian_filter(field, 2.0))
    return np.arctan2(_at(gradient_y, points), _at(gradient_x, points))


def _sites(allowed: np.ndarray, spacing_px: float, rng: np.random.Generator) -> np.ndarray:
    """Points (K, 2), as y and x, of a jittered hexagonal grid that fall on `allowed` (H, W)."""
    size_y, size_x = allowed.shape
    row_px = spacing_px * np.sqrt(0.75)
    y, x = np.mgrid[0 : size_y / row_px + 1, 0 : size_x / spacing_px + 1]
    points = np.stack([y * row_px, (x + 0.5 * (y % 2)) * spacing_px], -1).reshape(-1, 2)
    points += rng.normal(0, 0.2 * spacing_px, points.shape)
    points = points[((points >= 0) & (points < [size_y, size_x])).all(1)]
    return points[_at(allowed, points)]


def _stamp_nuclei(
    canvas: np.ndarray,
    points: np.ndarray,
    *,
    angle: np.ndarray,
    length_px: float,
    elongation: float,
    pleomorphism: float,
    vesicular: float,
    rng: np.random.Generator,
) -> None:
    """Draw soft, uneven ellipses into `canvas` (H, W), keeping the darkest; `vesicular` ones have a pale centre."""
    if not len(points):
        return
    column = (len(points), 1, 1)
    half_length_px = length_px / 2 * np.exp(rng.normal(0, pleomorphism, column))
    half_width_px = half_length_px / elongation
    offset = np.arange(-(reach := int(np.ceil(1.4 * half_length_px.max()))), reach + 1)
    y = np.floor(points[:, 0]).astype(int).reshape(column) + offset[None, :, None]
    x = np.floor(points[:, 1]).astype(int).reshape(column) + offset[None, None, :]
    dy, dx = y + 0.5 - points[:, 0].reshape(column), x + 0.5 - points[:, 1].reshape(column)
    cosine, sine = np.cos(angle).reshape(column), np.sin(angle).reshape(column)
    along, across = (cosine * dx + sine * dy) / half_length_px, (cosine * dy - sine * dx) / half_width_px
    outline = 1.0 + np.zeros_like(along)
    for lobes in (2, 3):  # unevenness of the outline
        phase = rng.uniform(0, 2 * np.pi, column)
        outline += 0.4 * pleomorphism * np.cos(lobes * np.arctan2(across, along) + phase)
    inwards_px = (outline - np.hypot(along, across)) * half_width_px
    value = np.clip(inwards_px + 0.5, 0, 1) * (1 - 0.65 * vesicular * np.clip(inwards_px - 0.8, 0, 1))
    value *= rng.uniform(0.75, 1.15, column)
    y, x = np.broadcast_arrays(y, x)
    keep = (y >= 0) & (y < canvas.shape[0]) & (x >= 0) & (x < canvas.shape[1]) & (value > 0)
    np.maximum.at(canvas, (y[keep], x[keep]), value[keep].astype(canvas.dtype))


def _membranes(epithelium: np.ndarray, points: np.ndarray, style: PatientStyle) -> np.ndarray:
    """Borders (H, W), 0 to 1, of the Voronoi cells of `points` within the epithelium; some edges are unstained."""
    membranes = np.zeros(epithelium.shape, np.float32)
    if len(points) > 1:
        distance_px, cell = spatial.cKDTree(points).query(np.argwhere(epithelium) + 0.5, k=2)
        gap_px = (distance_px[:, 1] - distance_px[:, 0]) / 2
        edge = cell.min(1) * 7919 + cell.max(1) * 104729  # one number per pair of cells: an edge is stained as a whole
        membranes[epithelium] = np.clip(style.membrane_px - gap_px, 0, 1) * (edge % 1009 < 1009 * style.membrane_share)
    return membranes


def _epithelial_cells(
    layout: np.ndarray, style: PatientStyle, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei and membranes of the epithelium, two (H, W) maps from 0 to about 1."""
    nuclei, epithelium = np.zeros(layout.shape, np.float32), layout == EPITHELIUM
    points = _sites(epithelium, style.nucleus_px * style.crowding, rng)
    membranes = _membranes(epithelium, points, style)
    base_px = ndimage.distance_transform_edt(layout != STROMA)
    lumen_px = ndimage.distance_transform_edt(layout != BACKGROUND)
    # Nuclei stay off the borders; in polar cells they leave the half towards the lumen, and stand upright on the base.
    apical = _at(lumen_px < base_px, points) & (rng.random(len(points)) < style.polarity)
    points = points[~apical & (_at(np.minimum(base_px, lumen_px), points) > 1.5)]
    angle = _direction(base_px, points) + rng.normal(0, 0.35, len(points))
    _stamp_nuclei(
        nuclei,
        points,
        angle=angle,
        length_px=style.nucleus_px,
        elongation=style.elongation,
        pleomorphism=style.pleomorphism,
        vesicular=style.chromatin[1],
        rng=rng,
    )
    return nuclei, membranes


def _fibre_texture(stroma: np.ndarray, style: PatientStyle, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wavy oriented texture (H, W), standard deviation about 1, and the field whose level lines the fibres follow."""
    _, width_px, length_px, wave_px = style.fibres
    y, x = np.indices(stroma.shape, dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    around_px = ndimage.gaussian_filter(ndimage.distance_transform_edt(stroma), 5.0)
    across = np.cos(angle) * y + np.sin(angle) * x + wave_px * smooth_noise(stroma.shape, 15.0, rng) + 0.6 * around_px
    along = np.cos(angle) * x - np.sin(angle) * y
    tile = 0.8 * smooth_noise((256, 256), (width_px, length_px), rng)
    tile += 0.6 * smooth_noise((256, 256), (0.4 * width_px, 0.5 * length_px), rng)
    return ndimage.map_coordinates(tile, [across, along], order=1, mode="grid-wrap"), across


def _stromal_nuclei(
    stroma: np.ndarray, across: np.ndarray, style: PatientStyle, *, rng: np.random.Generator
) -> np.ndarray:
    """Spindle cells along the fibres and round lymphocytes, a map (H, W) from 0 to about 1."""
    nuclei = np.zeros(stroma.shape, np.float32)
    clumps = 1 + 0.5 * smooth_noise(stroma.shape, 12.0, rng)
    for per_100_px, length_px, elongation in ((style.fibroblasts, 9.0, 3.2), (style.lymphocytes, 4.8, 1.05)):
        points = _sites(stroma, 8 / np.sqrt(max(per_100_px, 1e-3)), rng)
        points = points[_at(clumps, points) > rng.random(len(points)) * 1.6]  # about 64 % stay, in clumps
        _stamp_nuclei(
            nuclei,
            points,
            angle=_direction(across, points) + np.pi / 2,
            length_px=length_px,
            elongation=elongation,
            pleomorphism=0.15,
            vesicular=0.2 * style.chromatin[1],
            rng=rng,
        )
    return nuclei


def _ground(layout: np.ndarray, style: PatientStyle, texture: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Haematoxylin and eosin (H, W, 2) of everything but nuclei and membranes."""
    stroma, epithelium = layout == STROMA, layout == EPITHELIUM
    bundles = np.clip(1 + style.fibres[0] * texture, 0.1, 2.0) * (1 + 0.1 * smooth_noise(layout.shape, 15.0, rng))
    bundles *= 1 - style.cleft * np.exp(-((ndimage.distance_transform_edt(~epithelium) / 2.2) ** 2))
    field = smooth_noise(layout.shape, 2.2, rng)
    vacuoles = np.clip(2 * (field - np.quantile(field, 1 - style.vacuoles)), 0, 1)
    granules = np.clip(1 + style.granularity * smooth_noise(layout.shape, 0.8, rng), 0.2, 2) * (1 - 0.85 * vacuoles)
    lumen = ndimage.binary_fill_holes(layout != BACKGROUND) & (layout == BACKGROUND)
    secretion = lumen * np.clip(1 + 0.3 * smooth_noise(layout.shape, 4.0, rng), 0, 2)
    parts = (stroma * bundles, epithelium * granules, secretion)
    amounts = np.array([style.matrix, style.cytoplasm, style.secretion])  # (part, stain)
    return np.stack(parts, -1) @ amounts


def _concentrations(layout: np.ndarray, style: PatientStyle, rng: np.random.Generator) -> np.ndarray:
    """Stain concentrations (H, W, 3): haematoxylin, eosin (IHC: faint background), DAB."""
    texture, across = _fibre_texture(layout == STROMA, style, rng)
    ground = _ground(layout, style, texture, rng=rng)
    nuclei, membranes = _epithelial_cells(layout, style, rng)
    nuclei = np.maximum(nuclei, _stromal_nuclei(layout == STROMA, across, style, rng=rng))
    chromatin = np.clip(1 + 0.2 * smooth_noise(layout.shape, 0.7, rng), 0.3, 1.8)
    covered = np.minimum(nuclei, 1)
    haematoxylin = ground[..., 0] * (1 - 0.8 * covered) + style.chromatin[0] * nuclei * chromatin
    eosin = ground[..., 1] * (1 - 0.6 * covered)
    brown = style.membrane * membranes * (1 - 0.5 * covered)
    if style.group == "he":  # no DAB: the membranes take eosin
        return np.stack([haematoxylin, eosin + brown, 0 * brown], -1)
    return np.stack([haematoxylin, eosin, brown], -1)


def render(layout: np.ndarray, style: PatientStyle, rng: np.random.Generator) -> np.ndarray:
    """Draw tissue that follows `layout` (H, W) in the patient's style. Returns uint8 (H, W, 3).

    Intensity = white * 10^(-concentrations @ stains) (Beer-Lambert; Ruifrok & Johnston 2001), then the scanner.
    """
    concentrations = ndimage.gaussian_filter(_concentrations(layout, style, rng), (style.blur_px, style.blur_px, 0))
    intensity = style.white * 10.0 ** (-concentrations @ style.stains)
    intensity = np.clip(intensity @ style.colour_matrix.T, 0, 1) ** style.gamma
    intensity += style.noise * rng.standard_normal(intensity.shape, dtype=np.float32)
    return np.round(255 * np.clip(intensity, 0, 1)).astype(np.uint8)
