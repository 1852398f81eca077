command -v lmp >/dev/null || exit 127
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
cat > in <<T
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 12 0 12 0 12
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
neighbor 0.3 bin
fix 1 all nve
thermo 100
run 2000
T
mpirun --oversubscribe -n 2 lmp -in in > l 2>&1; r=$?; grep -E '^ +[0-9]+ +[0-9.]+ ' l | head -21; exit $r
