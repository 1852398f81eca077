command -v blender >/dev/null || exit 127
cat > a.py <<'P'
import bpy, random
random.seed(3)
for i in range(40): bpy.ops.mesh.primitive_uv_sphere_add(radius=.3, location=(random.uniform(-3, 3), random.uniform(-3, 3), random.uniform(-1, 1)))
s = bpy.context.scene; s.render.engine = 'CYCLES'; s.cycles.device = 'CPU'; s.cycles.samples = 6; s.cycles.use_denoising = False; s.cycles.seed = 5
s.render.resolution_x = 240; s.render.resolution_y = 180; s.render.threads_mode = 'FIXED'; s.render.threads = 2
for k in range(2): s.render.image_settings.file_format = 'BMP'; s.render.filepath = f'//../o{k}.bmp'; s.render.filepath = __import__('os').getcwd() + f'/o{k}.bmp'; s.cycles.seed = k; bpy.ops.render.render(write_still=True)
P
export HOME=$PWD; blender -b -noaudio --factory-startup --python a.py >l 2>&1; echo $?; sha256sum o*.bmp
