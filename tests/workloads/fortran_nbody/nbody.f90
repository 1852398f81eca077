! Bodies under gravity, with a formatted and an unformatted unit open all the time.
! Usage: nbody ROUNDS TEXT BINARY
program nbody
  implicit none
  integer, parameter :: bodies = 24, steps = 600
  real(8), parameter :: dt = 1.0d-4
  real(8) :: x(3, bodies), v(3, bodies), a(3), d(3), m(bodies), r2, energy
  integer :: rounds, round, step, i, j
  character(len=256) :: argument

  call get_command_argument(1, argument)
  read (argument, *) rounds
  call get_command_argument(2, argument)
  open (unit=10, file=trim(argument), form='formatted', status='replace')
  call get_command_argument(3, argument)
  open (unit=11, file=trim(argument), form='unformatted', status='replace')

  do i = 1, bodies
    m(i) = 1.0d0 + 0.1d0*i
    do j = 1, 3
      x(j, i) = cos(1.7d0*i + j)*10.0d0
      v(j, i) = sin(0.9d0*i - j)
    end do
  end do

  do round = 1, rounds
    do step = 1, steps
      do i = 1, bodies
        a = 0.0d0
        do j = 1, bodies
          if (j == i) cycle
          d = x(:, j) - x(:, i)
          r2 = dot_product(d, d) + 0.01d0
          a = a + d*(m(j)/(r2*sqrt(r2)))
        end do
        v(:, i) = v(:, i) + dt*a
      end do
      x = x + dt*v
    end do
    energy = 0.0d0
    do i = 1, bodies
      energy = energy + 0.5d0*m(i)*dot_product(v(:, i), v(:, i))
    end do
    write (10, '(i6, 7es25.16)') round, energy, x(:, 1), v(:, bodies)
    write (11) round, x, v
    flush (10)
    flush (11)
  end do
  close (10)
  close (11)
end program nbody
