command -v gmx >/dev/null || exit 127
export GMXLIB=/usr/share/gromacs/top
gmx solvate -cs spc216.gro -box 3 3 3 -o w.gro >/dev/null 2>&1
n=$(grep -c OW w.gro)
cat > t.top <<T
#include "oplsaa.ff/forcefield.itp"
#include "oplsaa.ff/spc.itp"
[ system ]
w
[ molecules ]
SOL $n
T
cat > m.mdp <<T
integrator=md
nsteps=2500
dt=0.001
nstenergy=200
nstxout=500
cutoff-scheme=Verlet
coulombtype=PME
constraints=none
tcoupl=v-rescale
tc-grps=System
tau_t=0.1
ref_t=300
ld-seed=5
gen_vel=yes
gen_seed=7
T
printf 'integrator=steep\nnsteps=200\nemstep=0.01\nemtol=100\ncoulombtype=PME\n' > e.mdp
gmx grompp -f e.mdp -c w.gro -p t.top -o e.tpr -maxwarn 5 >/dev/null 2>&1
gmx mdrun -s e.tpr -deffnm e -ntmpi 1 -ntomp 1 >/dev/null 2>&1
gmx grompp -f m.mdp -c e.gro -p t.top -o r.tpr -maxwarn 5 >/dev/null 2>&1
gmx mdrun -s r.tpr -reprod -ntmpi 1 -ntomp 2 -deffnm r >/dev/null 2>&1
echo $?
sha256sum r.gro
gmx dump -f r.trr 2>/dev/null | sha256sum
