! Heat in a plate. Writes its state every hundred steps, and goes on from the newest one when it is started again.
!
!   gfortran -O2 -o heat gridcpr.f90 heat.f90 $(pkg-config --libs gridcpr) && ./heat /scratch 4000
program heat
  use, intrinsic :: iso_fortran_env, only: error_unit, int64, real64
  use gridcpr
  implicit none
  integer, parameter :: n = 200
  real(real64), target :: now(n, n) = 0
  real(real64) :: next(n, n), total
  integer(int64), target :: step = 0
  integer(int64) :: generation, last
  integer :: i, j
  character(len=1000) :: base, text
  type(checkpoint) :: state

  call get_command_argument(1, base)
  call get_command_argument(2, text)
  read (text, *) last
  now(:, 1) = 100

  call state%open(base, 'heat-f', keep=2)
  call state%protect('temperature', now)
  call state%protect('step', step)
  generation = state%restore()
  if (generation > 0) write (error_unit, '(a, i0)') 'heat: going on at step ', step

  next = now
  do while (step < last)
    do j = 2, n - 1
      do i = 2, n - 1
        next(i, j) = now(i, j) + 0.2_real64*(now(i - 1, j) + now(i + 1, j) + now(i, j - 1) + now(i, j + 1) - 4*now(i, j))
      end do
    end do
    now = next
    step = step + 1
    if (mod(step, 100_int64) == 0) generation = state%write()
  end do
  call state%close()

  total = 0
  do j = 1, n
    do i = 1, n
      total = total + now(i, j)*(i*31 + j)
    end do
  end do
  print '(i0, a, es25.17)', step, ' steps, ', total
end program
